"""`medcap train`: hands scripts/train.py to `accelerate launch`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """The folder `recipes` or `scripts`: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def train(words: list[str]) -> int:
    """`medcap train --config X.yaml [--accelerate ddp] ...`: hands scripts/train.py to `accelerate launch`."""
    parser = argparse.ArgumentParser(
        prog="medcap train", usage="medcap train --config RECIPE [--any_key value]", add_help=False
    )
    parser.add_argument("--accelerate", default="cpu" if not _has_cuda() else None)
    args, rest = parser.parse_known_args(words)
    return subprocess.run(launch(rest, args.accelerate), check=False).returncode


def launch(words: list[str], config: str | None) -> list[str]:
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
    chosen += ["--quiet"]  # or its own traceback follows the line in which training says what is wrong
    return [sys.executable, "-m", "accelerate.commands.launch", *chosen, str(shipped("scripts") / "train.py"), *words]


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
