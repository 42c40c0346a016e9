"""`medcap train`: scripts/train.py through `accelerate launch`."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from medcap.launch import launch_command


def train(arguments: list[str]) -> int:
    """Run `medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...` and return its exit status."""
    if {"-h", "--help", "--help-all"} & set(arguments):
        from medcap.recipe.help import recipe_help

        print(recipe_help(every_key="--help-all" in arguments))
        return 0
    parser = argparse.ArgumentParser(prog="medcap train", add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate", default="cpu" if not _has_cuda() else None)
    parser.add_argument("--num_processes", type=int)
    options, rest = parser.parse_known_args(arguments)
    try:
        command = launch_command(rest, options.accelerate, options.num_processes and str(options.num_processes))
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"medcap: error: {error}\n")
        return 2
    # the launcher inherits this and waits too; training handles both signals and exits with a checkpoint
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
