"""A sample of the inputs of `python tests/fuzz.py`, and the faults that it detects."""

from pathlib import Path

import conftest
import pytest
from fuzz import MONITOR, Case, fuzz, run
from fuzz_inputs import MAKERS, Sources

COUNTS = {
    "recipes": 25,
    "tables": 20,
    "images": 25,
    "captions": 15,
    "checkpoints": 15,
    "dicom": 40,
    "features": 40,
    "pairs": 3,
}
SKIPPED = ("score", "evaluate")  # they start Java for METEOR; python tests/fuzz.py runs them


@pytest.fixture
def shared() -> Path:
    return Path(conftest.CACHE.name)


@pytest.mark.parametrize(("kind", "count"), COUNTS.items(), ids=COUNTS)
def test_malformed_input_gives_a_status_and_at_most_one_error(
    kind, count, trained_run, tiny_base, phantoms, shared, tmp_path
):
    sources = Sources(tiny_base, phantoms, trained_run.folder)
    results = list(fuzz(kind, range(count), 1, tmp_path, shared, sources, skip=SKIPPED))
    assert [f"{case.number}: {outcome.fault}" for case, outcome in results if outcome.fault] == []
    assert len(results) >= count / 2


def test_every_kind_is_sampled():
    assert COUNTS.keys() == MAKERS.keys()


def raise_error(argv):
    raise KeyError("x")


def print_traceback(argv):
    print("Traceback (most recent call last)")


def print_two_errors(argv):
    print("medcap: error: a\nmedcap: error: b")
    raise SystemExit(1)


def print_error_without_cause(argv):
    print("medcap: error: KeyError: 'x' (run again with --debug for the traceback)")
    raise SystemExit(1)


def write_outside(argv):
    Path(argv[0]).write_text("x")


def exit_with_7(argv):
    raise SystemExit(7)


FAULTS = {
    raise_error: "raised:", print_traceback: "a traceback", print_two_errors: "status 1 with 2",
    print_error_without_cause: "an error without a cause", write_outside: "wrote outside", exit_with_7: "status 7",
}  # fmt: skip


@pytest.mark.parametrize(("command", "fault"), FAULTS.items(), ids=[command.__name__ for command in FAULTS])
def test_fault_is_detected(command, fault, shared, tmp_path):
    (tmp_path / "own").mkdir()
    outcome = run(Case("", 0, [str(tmp_path / "elsewhere.txt")], command), tmp_path / "own", shared)
    assert outcome.fault.startswith(fault)
    assert not MONITOR.is_active
