"""Every family computes the same when torch's FSDP2 shards it over two processes, and its adapter is saved whole."""

import os
import subprocess
import sys

import pytest
import tiny_bases
import torch
from conftest import ROOT

NAMES = ("blip", *tiny_bases.MAKERS)


@pytest.fixture(scope="module")
def results(tiny_base, tmp_path_factory):
    """Return {(rank, name): (results without FSDP2, results with it)}."""
    out = tmp_path_factory.mktemp("sharded")
    bases = [f"{name}={tiny_base if name == 'blip' else tiny_bases.base(name)}" for name in NAMES]
    program = [sys.executable, str(ROOT / "tests" / "families" / "sharded_processes.py"), str(out), *bases]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'training'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(rank, name): pair for rank in (0, 1) for name, pair in torch.load(out / f"{rank}.pt").items()}


@pytest.mark.parametrize("name", NAMES)
def test_sharded_model_computes_the_same(results, name):
    """One process generates longer captions than the other, which takes part until the end."""
    for rank in (0, 1):
        (loss, ids, _), (sharded_loss, sharded_ids, _, _) = results[rank, name]
        torch.testing.assert_close(sharded_loss, loss)
        assert sharded_ids.equal(ids)
    assert results[0, name][0][1].shape[1] > results[1, name][0][1].shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_gathered_adapter_is_that_of_one_process(results, name):
    (_, _, expected), (_, _, saved, is_exact) = results[0, name]
    assert is_exact
    assert saved.keys() == expected.keys()
    for key, weight in saved.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)
