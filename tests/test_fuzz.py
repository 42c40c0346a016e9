"""A few hundredths of what `python tests/fuzz.py` makes: no traceback, no hang, nothing outside the folder."""

from pathlib import Path

import conftest
import pytest
from fuzz import WATCH, Case, fuzz, run
from fuzz_inputs import MAKERS, Seeds

COUNTS = {"recipes": 25, "tables": 20, "images": 25, "captions": 15, "checkpoints": 15}
SLOW = ("score", "evaluate")  # they start Java for METEOR: left to the whole run


@pytest.fixture
def shared() -> Path:
    return Path(conftest._CACHE.name)


@pytest.mark.parametrize(("kind", "count"), COUNTS.items(), ids=COUNTS)
def test_hostile_input_ends_in_a_status_and_at_most_a_line(
    kind, count, trained_run, tiny_base, phantoms, shared, tmp_path
):
    seeds = Seeds(tiny_base, phantoms, trained_run.folder)
    ended = list(fuzz(kind, range(count), 1, tmp_path, shared, seeds, skip=SLOW))
    assert [f"{case.number}: {ending.fault}" for case, ending in ended if ending.fault] == []
    assert len(ended) > count / 2


def test_every_kind_is_tried():
    assert COUNTS.keys() == MAKERS.keys()


def _fails(words):
    raise KeyError("x")


def _shows(words):
    print("Traceback (most recent call last)")


def _tells_twice(words):
    print("medcap: error: a\nmedcap: error: b")
    raise SystemExit(1)


def _says_nothing(words):
    print("medcap: error: KeyError: 'x' (run again with --debug for the traceback)")
    raise SystemExit(1)


def _writes_outside(words):
    Path(words[0]).write_text("x")


def _ends_oddly(words):
    raise SystemExit(7)


FAULTS = {
    "raises": (_fails, "raised:"), "traceback": (_shows, "a traceback"), "twice": (_tells_twice, "status 1 with 2"),
    "no word": (_says_nothing, "an error that says"), "elsewhere": (_writes_outside, "wrote outside"),
    "status": (_ends_oddly, "status 7"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_is_a_fault_is_seen(command, fault, shared, tmp_path):
    (tmp_path / "own").mkdir()
    ending = run(Case("", 0, [str(tmp_path / "elsewhere.txt")], command), tmp_path / "own", shared)
    assert ending.fault.startswith(fault)
    assert not WATCH.is_on
