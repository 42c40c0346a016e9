"""SIGKILL while a run writes its files, at an event that the seed chooses; a part of benchmarks/kills.py.

It runs in a process of its own, because it forks, which is unsafe after multi-threaded computation.
pytest tests/training/test_kills.py
"""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_killed_run_resumes_exactly():
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--epochs", "2", "--kills", "0", "--points", "1"]
    done = subprocess.run([*command, "--seed", "30"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"1 runs, [1-9] kills, 0 differ", done.stdout.splitlines()[-1])
