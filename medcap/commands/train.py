"""`medcap train`: scripts/train.py through `accelerate launch`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medcap.launch import launch_command, run_training


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
    return run_training(command)


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
