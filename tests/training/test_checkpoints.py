"""Damaged checkpoints are not used, the best and the newest stay, and files are written atomically.

pytest tests/training/test_checkpoints.py
"""

import json
import os
import shutil

import pytest

from medcap.io import PARTIAL, commit_folder, remove_folder, staging_folder, write_text
from medcap.recipe import RecipeError
from medcap.training.checkpoints import (
    CHECKSUMS,
    checkpoints,
    find_damage,
    find_damage_for_resume,
    pending_work,
    rotate,
    write_checksums,
)
from medcap.training.run_folder import adopt_best


@pytest.fixture
def make(tmp_path):
    """Create checkpoint-N in a run, with checksums and a state that names the best step."""

    def made(step, best=None, stopped=None):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step").mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_global_step": best}))
        (folder / "optimizer.pt").write_bytes(bytes(range(100)))
        (folder / "global_step" / "shard.pt").write_bytes(b"of another engine")
        write_checksums(folder, stopped)
        return folder

    return made


def truncate(path):
    os.truncate(path, 60)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


def corrupt(path):
    path.write_text("{")


FAULTS = {
    "a missing file": ("optimizer.pt", os.unlink, "optimizer.pt is missing"),
    "a cut file": ("optimizer.pt", truncate, "optimizer.pt has 60 bytes of 100"),
    "one bit": ("optimizer.pt", flip_bit, "optimizer.pt has another checksum"),
    "a file in a folder": ("global_step/shard.pt", os.unlink, "global_step/shard.pt is missing"),
    "no checksums": (CHECKSUMS, os.unlink, f"{CHECKSUMS} is missing"),
    "truncated checksums": (CHECKSUMS, corrupt, f"{CHECKSUMS} cannot be parsed"),
    "checksums of another format": (CHECKSUMS, lambda path: path.write_text("[]"), f"{CHECKSUMS} cannot be parsed"),
}


@pytest.mark.parametrize(("name", "damage", "message"), FAULTS.values(), ids=FAULTS)
def test_every_kind_of_damage_is_named(make, name, damage, message):
    checkpoint = make(3)
    assert find_damage(checkpoint) == ""
    damage(checkpoint / name)
    assert find_damage(checkpoint) == message


def test_checkpoint_whose_best_is_damaged_is_not_resumed(make):
    """The run would end with the adapter of the last epoch; an older checkpoint trains the best one again."""
    make(3), make(6, best=6), make(9, best=6)
    flip_bit(checkpoints(make(12, best=6).parent)[2] / "optimizer.pt")
    run = make(15, best=15).parent
    damage = {path.name: find_damage_for_resume(path, with_best=True) for path in checkpoints(run)}
    broken = "optimizer.pt has another checksum"
    behind = f"its best checkpoint, checkpoint-6, is damaged: {broken}"
    assert damage == {
        "checkpoint-15": "", "checkpoint-12": behind, "checkpoint-9": behind,
        "checkpoint-6": broken, "checkpoint-3": "",
    }  # fmt: skip
    assert find_damage_for_resume(run / "checkpoint-9", with_best=False) == ""


FOREIGN = {
    "a path alone": {"best_global_step": None, "best_model_checkpoint": "{elsewhere}"},
    "a path of this run alone": {"best_global_step": None, "best_model_checkpoint": "{run}/checkpoint-3"},
    "a step that is a path": {"best_global_step": "3/../../elsewhere", "best_model_checkpoint": None},
    "a later step": {"best_global_step": 9, "best_model_checkpoint": None},
    "a link": {"best_global_step": 4, "best_model_checkpoint": "{run}/checkpoint-4"},
}


@pytest.mark.parametrize("state", FOREIGN.values(), ids=FOREIGN)
def test_best_checkpoint_is_one_of_this_run(make, tmp_path, state):
    """The checksums are right: they were computed after the change."""
    run, elsewhere = make(3).parent, tmp_path / "elsewhere"
    make(9)
    make(6)
    shutil.copytree(run / "checkpoint-3", elsewhere)
    (run / "checkpoint-4").symlink_to(elsewhere)
    named = {key: value.format(run=run, elsewhere=elsewhere) if isinstance(value, str) else value
             for key, value in state.items()}  # fmt: skip
    (run / "checkpoint-6" / "trainer_state.json").write_text(json.dumps({"global_step": 6, **named}))
    write_checksums(run / "checkpoint-6")
    assert find_damage(run / "checkpoint-6") == ""
    damage = find_damage_for_resume(run / "checkpoint-6", with_best=True)
    assert "as its best checkpoint" in damage or "is a link to" in damage, damage


def test_best_checkpoint_of_a_moved_run_is_found_by_its_step(make, tmp_path):
    run = make(3).parent
    make(6, best=3)
    state = {"global_step": 6, "best_global_step": 3, "best_model_checkpoint": "/before/the/move/checkpoint-3"}
    (run / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state))
    write_checksums(run / "checkpoint-6")
    assert find_damage_for_resume(run / "checkpoint-6", with_best=True) == ""


def test_best_checkpoint_of_the_run_that_is_resumed_elsewhere_is_copied(make, tmp_path):
    best, last, new = make(3), make(6, best=3), tmp_path / "new"
    new.mkdir()
    adopt_best(tmp_path, last)  # the run itself has it
    for _ in range(2):
        adopt_best(new, last)
        assert [(path.name, find_damage(path)) for path in new.iterdir()] == [("checkpoint-3", "")]
    flip_bit(best / "optimizer.pt")
    write_checksums(best)
    with pytest.raises(RecipeError, match="new/checkpoint-3 is of another run than .*checkpoint-6"):
        adopt_best(new, last)


def test_pending_work_is_recorded(make):
    assert pending_work(make(3)) is None
    assert pending_work(make(4, stopped={"signal": "SIGTERM"})) == {"signal": "SIGTERM"}
    damaged = make(5)
    corrupt(damaged / CHECKSUMS)
    assert pending_work(damaged) is None


def test_checkpoints_are_sorted_by_step_without_incomplete_ones(make, tmp_path):
    for step in (9, 10, 100):
        make(step)
    (tmp_path / f"checkpoint-200{PARTIAL}").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]


ROTATIONS = [
    (None, 2, [2, 4, 6, 8]), (0, 2, [2, 4, 6, 8]), (4, 2, [2, 4, 6, 8]),
    (3, 2, [2, 6, 8]), (2, 2, [2, 8]), (1, 2, [2, 8]), (1, 8, [8]), (2, None, [6, 8]),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "best", "left"), ROTATIONS)
def test_rotation_keeps_the_newest_and_the_best(make, tmp_path, limit, best, left):
    for step in (2, 4, 6, 8):
        make(step)
    rotate(tmp_path, limit, best)
    assert [int(path.name.rpartition("-")[2]) for path in checkpoints(tmp_path)] == left[::-1]
    assert not list(tmp_path.glob(f"*{PARTIAL}"))


def test_committed_folder_replaces_another(tmp_path):
    for content in ("first", "second"):
        part = staging_folder(tmp_path / "adapter")
        (part / content).write_text(content)
        commit_folder(part, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["second"]


def test_interrupted_removal_leaves_no_folder_under_the_name(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-3").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # interrupted here
    remove_folder(tmp_path / "checkpoint-3")
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-3.old{PARTIAL}"]


def test_text_is_written_atomically(tmp_path, monkeypatch):
    write_text(tmp_path / "metrics.jsonl", "before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        write_text(tmp_path / "metrics.jsonl", "after")
    assert (tmp_path / "metrics.jsonl").read_text() == "before"
