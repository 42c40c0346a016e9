"""`medcap train`: hands scripts/train.py to `accelerate launch`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """The folder `recipes` or `scripts`: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def train(words: list[str]) -> int:
    """`medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...`: as `accelerate launch` does."""
    parser = argparse.ArgumentParser(
        prog="medcap train", usage="medcap train --config RECIPE [--any_key value]", add_help=False
    )
    parser.add_argument("--accelerate", default="cpu" if not _has_cuda() else None)
    parser.add_argument("--num_processes")
    args, rest = parser.parse_known_args(words)
    command = launch(rest, args.accelerate, args.num_processes)
    # what is started here inherits it, and waits too: training itself heeds them, and leaves with a checkpoint
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(words: list[str], config: str | None, num_processes: str | None = None) -> list[str]:
    """The command `accelerate launch [--config_file ...] scripts/train.py ...`; `config` is a name or a file."""
    chosen: list[str] = []
    if config is not None:
        known = shipped("recipes") / "accelerate" / f"{config}.yaml"
        if not known.is_file() and not Path(config).is_file():
            names = ", ".join(sorted(path.stem for path in known.parent.glob("*.yaml")))
            sys.stderr.write(f"medcap: error: --accelerate {config}: no such file; known names are {names}\n")
            sys.exit(2)
        chosen = ["--config_file", str(known if known.is_file() else config)]
    if config == "cpu":  # or accelerate tells at length that it chose the number itself
        chosen += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    if num_processes is not None:
        chosen += ["--num_processes", num_processes]
    return [sys.executable, "-m", "medcap.launch", *chosen, str(shipped("scripts") / "train.py"), *words]


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
