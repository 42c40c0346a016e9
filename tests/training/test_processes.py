"""One process or several: the same steps, every image scored once, and one of everything that is said and written.

Trap 19. pytest tests/training/test_processes.py
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def found(tiny_base, tmp_path_factory):
    """{(world, rank): what that process found}."""
    out = tmp_path_factory.mktemp("processes")
    program = [sys.executable, str(ROOT / "tests" / "training" / "processes.py"), str(tiny_base), str(out)]
    subprocess.run(program, check=True, env=ENVIRONMENT)
    return {(world, rank): torch.load(out / f"{world}-{rank}.pt") for world in (1, 2, 3) for rank in range(world)}


SAME = {
    "two processes": (2, "8", "8"),
    "two processes, accumulated": (2, "8, accumulated", "8"),
    "one process, accumulated": (1, "8, accumulated", "8"),
    "three processes": (3, "9", "9"),  # 10 rows: of the last step, two processes have none
}


@pytest.mark.parametrize("sampling", ["group_by_length", "random"])
@pytest.mark.parametrize(("world", "split", "alone"), SAME.values(), ids=SAME)
def test_a_step_is_the_same_on_however_many_processes(found, world, split, alone, sampling):
    """Loss, gradient and its norm of each step of two epochs; the last one of an epoch has 2 rows, or 1."""
    one, several = found[1, 0][alone, sampling], found[world, 0][split, sampling]
    assert len(one["loss"]) == 4
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert several["norm"] == pytest.approx(one["norm"], rel=1e-3)
    torch.testing.assert_close(several["gradients"], one["gradients"], rtol=1e-3, atol=1e-4)
    assert one["loss"][0] != pytest.approx(one["loss"][2], rel=1e-3)  # the second epoch has another order


@pytest.mark.parametrize("images", [10, 2])
def test_three_processes_score_every_image_once_and_on_one_of_them(found, images):
    (alone,), (rows, ids) = found[1, 0][images]["scored"], found[3, 0][images]["scored"][0]
    assert rows == list(range(images))
    assert (rows, ids) == alone
    assert [len(found[3, rank][images]["scored"]) for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("images", [10, 2])
def test_every_process_knows_the_same_metrics(found, images):
    """So that all choose the same epoch as the best; the loss counts every label once."""
    expected = found[1, 0][images]
    for world in (2, 3):
        told = [found[world, rank][images] for rank in range(world)]
        assert [part["images"] for part in told] == [images] * world
        assert len({part["loss"] for part in told}) == 1
        assert told[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
