"""Two processes take the steps of one, for every family, for a 4-bit base and without an adapter."""

import os
import subprocess
import sys

import pytest
import tiny_bases
import torch
from conftest import ROOT

KINDS = {"llava, 4 bits": ("llava", "4bit"), **{f"{name}, full": (name, "full") for name in ("llava", "vit-gpt2")}}
NAMES = (*tiny_bases.MAKERS, *KINDS)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return {number of processes: results of the first}."""
    out = tmp_path_factory.mktemp("processes")
    bases = [f"{name}={tiny_bases.base(name)}" for name in tiny_bases.MAKERS]
    bases += [f"{name}={tiny_bases.base(base)}={kind}" for name, (base, kind) in KINDS.items()]
    program = [sys.executable, str(ROOT / "tests" / "families" / "family_processes.py"), str(out), *bases]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'training'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {world: torch.load(out / f"{world}-0.pt") for world in (1, 2)}


@pytest.mark.parametrize("name", NAMES)
def test_step_does_not_depend_on_the_number_of_processes(results, name):
    one, two = results[1][name], results[2][name]
    assert len(one["loss"]) == 2
    assert one["gradients"].abs().max() > 0
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-4)
