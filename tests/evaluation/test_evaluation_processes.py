"""An evaluation in one process or several: the same captions and scores, written and printed once."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from conftest import ROOT
from datasets import Dataset

from medcap.cli import main
from medcap.data.images import DIGEST_BYTES
from medcap.modeling.feature_store import ENTRY_BYTES
from medcap.processes import in_parts

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
OPTIONS = ["--batch_size", "4", "--max_new_tokens", "5", "--rerank", "consensus", "--num_beams", "3"]


@pytest.fixture(scope="module")
def evaluated(trained_run, tiny_base, phantoms, tmp_path_factory):
    """Evaluate 6 images in 3 processes and in 1; return the two folders, and stdout and stderr of the former.

    The batches of 4 and 2 images leave none for the third process.
    """
    folder = tmp_path_factory.mktemp("evaluated")

    def arguments(world):
        models = ["--model", str(trained_run.folder / "adapter"), "--baseline", str(tiny_base)]
        paths = [
            "--data",
            str(phantoms),
            "--out",
            str(folder / f"{world}"),
            "--feature_cache",
            str(folder / "features"),
        ]
        return ["evaluate", *models, *paths, *OPTIONS]

    program = [sys.executable, str(ROOT / "tests" / "evaluation" / "evaluation_processes.py"), "3", *arguments(3)]
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    main([*arguments(1), "--feature_cache", str(folder / "other")])
    return folder, done.stdout, done.stderr


def test_three_processes_write_the_evaluation_of_one(evaluated):
    one, three = evaluated[0] / "1", evaluated[0] / "3"
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(three) for path in three.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix == ".csv"]
    assert len(tables) == 2 * 7  # captions and scores of the system, of --baseline and of five baselines
    for path in tables:
        assert (one / path).read_bytes() == (three / path).read_bytes()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, three))
    assert (first.pop("environment")["processes"], second.pop("environment")["processes"]) == (1, 3)
    assert first == second


def test_three_processes_print_everything_once(evaluated):
    _, stdout, stderr = evaluated
    assert stdout.count("Report: ") == 1
    assert stderr.count("features of the vision encoder are cached") == 2  # of the adapter and of the base
    assert stderr.count("data: ") == 1


def test_three_processes_fill_one_feature_cache(evaluated):
    """Each of 6 test and 12 training images is encoded once for the adapter; the base encodes the former the same."""
    parts = []
    for index in (evaluated[0] / "features").rglob("*.idx"):
        entries = index.read_bytes()
        parts.append([entries[at : at + DIGEST_BYTES] for at in range(0, len(entries), ENTRY_BYTES)])
    digests = [digest for part in parts for digest in part]
    assert len(parts) == 3
    assert len(digests) == len(set(digests)) == 18


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (2, 3), (12, 1)])
@pytest.mark.parametrize("world", [2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(monkeypatch, rows, size, world):
    """At another batch size a matrix product may be rounded differently. Every row is in one batch."""

    def batches(part, size):
        return [part["row"][start : start + size] for start in range(0, len(part), size)]

    monkeypatch.setattr("medcap.processes.gather_object", lambda own: own)
    data, found = Dataset.from_dict({"row": range(rows)}), []
    for index in range(world):
        process = SimpleNamespace(num_processes=world, process_index=index)
        process.split_between_processes = partial(PartialState.split_between_processes, process)
        found += in_parts(process, data, size, batches)
    assert found == in_parts(None, data, size, batches)


@pytest.mark.slow
def test_failure_of_the_main_process_ends_the_others(evaluated, trained_run, phantoms):
    """The folder holds another evaluation: the other process, which waits for captions, must not wait forever."""
    out = evaluated[0] / "1"
    program = [sys.executable, "-m", "medcap.cli", "evaluate", "--accelerate", "cpu-ddp", "--num_processes", "2"]
    options = ["--model", str(trained_run.folder / "adapter"), "--data", str(phantoms), "--out", str(out)]
    done = subprocess.run([*program, *options], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"medcap: error: {out} holds another evaluation")
    assert "Traceback" not in done.stderr
