# Needs Python 3.10+ and make. Writes only into .venv* and the folder that a target names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-oldest test-newest bench docs quality style clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install medcap with what its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "medcap needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)  ## run the end-to-end demo offline, in minutes, or resume it; leaves the folder quickstart/
	$(BIN)/medcap quickstart

# one thread for each of pytest's workers: with more, two workers on two cores take three times as long
test test-oldest test-newest: export OMP_NUM_THREADS := 1

test: $(STAMP)  ## run the tests on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

test-oldest:  ## run the tests with the lowest versions that pyproject.toml allows, in .venv-oldest
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	.venv-oldest/bin/python -m pytest -n auto --dist worksteal

# torch stays at the version of constraints.txt: a newer one is a CUDA build of several gigabytes
test-newest:  ## run the tests with the newest versions that pyproject.toml allows, in .venv-newest
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		-e '.[dev]' "$$(grep ^torch== constraints.txt)"
	.venv-newest/bin/python -m pytest -n auto --dist worksteal

bench: $(STAMP)  ## measure speed against reference loops in 15 minutes; writes docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py --write

docs: $(STAMP)  ## build the documentation in site/, without network; a broken link is an error
	$(BIN)/python scripts/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

quality: $(STAMP)  ## lint, format, types, import order of packages, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --config-file setup.cfg
	$(BIN)/lint-imports
	$(BIN)/typos

style: $(STAMP)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environments, quickstart/, site/ and caches
	rm -rf $(VENV) .venv-oldest .venv-newest quickstart site build dist .mypy_cache .ruff_cache .pytest_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
