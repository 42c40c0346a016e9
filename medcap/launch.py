"""`accelerate launch` with the exit status of the training processes and one line for a process that was killed.

    python -m medcap.launch [--config_file FILE] [--num_processes N] scripts/train.py --config RECIPE

`medcap train` and `medcap evaluate --accelerate` run this module. The command of accelerate itself always exits with
status 1 after a failure, and prints a traceback of its own when one of several processes fails.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import psutil
import yaml

from medcap.logs import redact_streams

PACKAGE = Path(__file__).parent
THREADS = "--num_cpu_threads_per_process"


def shipped_folder(name: str) -> Path:
    """Return the folder `recipes` or `scripts`: next to the package in a checkout, inside it when installed."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def launch_command(
    arguments: list[str], config: str | None, num_processes: str | None = None, module: str | None = None
) -> list[str]:
    """Return the command that runs scripts/train.py, or a module, through accelerate.

    Args:
        arguments: the arguments of scripts/train.py or of the module.
        config: name of a file in recipes/accelerate, the path of one, or None for the defaults of accelerate.
        num_processes: replaces the number in the config.
        module: run instead of scripts/train.py.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: OMP_NUM_THREADS is not a positive integer.
    """
    options: list[str] = []
    if config is not None:
        known = shipped_folder("recipes") / "accelerate" / f"{config}.yaml"
        if not known.is_file() and not Path(config).is_file():
            names = ", ".join(sorted(path.stem for path in known.parent.glob("*.yaml")))
            raise FileNotFoundError(f"--accelerate {config}: no such file; known names are {names}")
        options = ["--config_file", str(known if known.is_file() else config)]
    if threads := cpu_threads(options[1:], num_processes):
        options += [THREADS, str(threads)]
    if num_processes is not None:
        options += ["--num_processes", num_processes]
    program = [str(shipped_folder("scripts") / "train.py")] if module is None else ["--module", module]
    return [sys.executable, "-m", "medcap.launch", *options, *program, *arguments]


def cpu_threads(config: list[str], num_processes: str | None) -> int | None:
    """Return the threads per process to compute on a CPU with, as accelerate chooses them; None to leave it to it.

    `config` holds the path of accelerate's config, if there is one. OMP_NUM_THREADS has priority.

    Raises:
        ValueError: OMP_NUM_THREADS is not a positive integer, or the config not a YAML mapping.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given and not (given.isdecimal() and int(given) > 0):
        raise ValueError(f"OMP_NUM_THREADS is {given!r}; it must be a positive integer, or unset")
    settings = _read_config(Path(config[0])) if config else {}
    if given or not settings.get("use_cpu"):
        return None
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or available, available)
    return max(cores // int(num_processes or settings.get("num_processes", 1)), 1)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError):
        raise ValueError(f"--accelerate {path}: not a config of accelerate, which is a YAML mapping") from None


def run_launched(command: list[str], stdout: Any = None) -> int:
    """Run the command of `launch_command` and return its exit status.

    Ctrl-C and SIGUSR1 do not end this process nor the launcher, which inherits this: training handles them, and exits
    with a checkpoint. SIGTERM is passed on.
    """
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        with subprocess.Popen(command, stdout=stdout) as launcher:
            earlier[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
            return launcher.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _pass_on(number: int, frame: Any) -> None:
    for process in psutil.Process().children():
        process.send_signal(number)


def main() -> None:
    """Run `accelerate launch` with the arguments of this process and exit with the status of the first failure.

    If several failures are found at once, the first one is unknown. Processes that lost another one exit with 1, so a
    killed process and a higher status come first. A killed process gives 128 plus the number of the signal.
    """
    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    redact_streams()
    signal.signal(signal.SIGTERM, _pass_on)  # with several processes torch replaces it by a handler that does the same
    if THREADS in sys.argv:
        threads = sys.argv[sys.argv.index(THREADS) + 1]
        sys.stderr.write(f"threads: {threads} of the CPU per process; OMP_NUM_THREADS sets another number\n")
    logging.disable(logging.CRITICAL)  # many lines on the processes that are ended after a failure
    try:
        accelerate_launch()
    except CalledProcessError as error:  # a single process
        if error.returncode < 0:
            sys.stderr.write(f"medcap: error: the process was ended by {signal.Signals(-error.returncode).name}\n")
        sys.exit(error.returncode if error.returncode > 0 else 128 - error.returncode)
    except SignalException as error:  # several processes, which torch has ended
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        status = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # SIGTERM is how the launcher ends the remaining processes
        killed = [rank for rank, code in status.items() if code < 0 and code != -signal.SIGTERM]
        if killed:
            name = signal.Signals(-status[killed[0]]).name
            sys.stderr.write(f"medcap: error: process {killed[0]} was ended by {name}; the others were stopped\n")
        sys.exit(max(*status.values(), 1))


if __name__ == "__main__":
    main()
