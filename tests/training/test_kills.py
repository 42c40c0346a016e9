"""One of the kills of benchmarks/kills.py: SIGKILL while a run writes its files, at an event that the seed chooses.

In a process of its own, because it forks, which a process that has computed with several threads must not.
pytest tests/training/test_kills.py
"""

import re
import subprocess
import sys

from conftest import ROOT


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been():
    words = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--epochs", "2", "--kills", "0", "--points", "1"]
    done = subprocess.run([*words, "--seed", "30"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"1 runs, [1-9] kills, 0 differ", done.stdout.splitlines()[-1])
