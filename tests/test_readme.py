"""Every command, file, recipe and option that the documents name exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from medcap.cli import make_parser
from medcap.recipe import read_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
DOCUMENTS += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")


def commands(path: Path) -> list[list[str]]:
    """The words of every command line in the document's code, comments of recipes included."""
    lines = re.findall(r"^(?:#\s+\w+ +|    )?((?:medcap|make|accelerate launch|python) .+)$", path.read_text(), re.M)
    quoted = re.findall(r"`((?:medcap|make|accelerate launch) [^`]+)`", path.read_text())
    return [shlex.split(line.split("[")[0], comments=True) for line in [*lines, *quoted]]


ALL = [(path, words) for path in [*DOCUMENTS, *RECIPES] for words in commands(path)]


def test_there_are_commands_to_check() -> None:
    assert len([words for path, words in ALL if path.name == "README.md"]) > 12


@pytest.mark.parametrize(("path", "words"), ALL, ids=[f"{path.name}: {' '.join(words)[:60]}" for path, words in ALL])
def test_every_command_is_one_that_exists(path: Path, words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[0] == "accelerate":
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        assert (ROOT / words[script]).is_file()
        read_recipe([*existing_recipe(words[script + 1 :]), "--use_cpu", "true"])  # bf16 wants a GPU or this
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[1] in ("train", "--version", "COMMAND", "...") or len(words) == 2:
        assert words[1] in make_parser().format_help()
    else:
        make_parser().parse_args(words[1:])  # argparse ends the test when an option is unknown or missing


def existing_recipe(words: list[str]) -> list[str]:
    """The words of a training command, RUN/recipe.yaml (which a run writes) replaced by one that made it."""
    return [
        str(ROOT / ("recipes/phantom/lora.yaml" if word.endswith("recipe.yaml") else word))
        if word.endswith(".yaml")
        else word
        for word in words
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"`((?:recipes|scripts|medcap|docs|tests|benchmarks)/[\w./-]+)`", text)
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in linked if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_in_the_readme(path: Path) -> None:
    assert str(path.relative_to(ROOT)) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_every_accelerate_configuration_is_one_that_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.search(r"\.PHONY: (.+)", makefile)[1].split():
        assert re.search(rf"^{target}:.*## ", makefile, re.M), target
