"""`medcap tune`: search the best hyper-parameters of a recipe."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, output_option
from medcap.extras import install_command


def add_commands(commands: Any) -> None:
    """Add `tune`."""
    parser = add_command(
        commands,
        "tune",
        _tune,
        "search the best hyper-parameters of a recipe (extra: tune); other options override its keys",
        "medcap tune --config recipes/phantom/lora.yaml --space recipes/phantom/space.yaml --trials 9 --out runs/tune",
    )
    parser.set_defaults(takes_keys=True)
    parser.add_argument("--config", type=Path, required=True, metavar="RECIPE", help="YAML file of the recipe")
    parser.add_argument("--space", type=Path, required=True, help="YAML file with the values to search, by key")
    parser.add_argument("--trials", type=_count, required=True, metavar="N", help="number of trials, earlier included")
    output_option(parser, "folder", required=True, help="folder of the search; the same command resumes it")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of trials; give 1 or more")
    return int(text)


def _tune(args: argparse.Namespace) -> None:
    if find_spec("optuna") is None:
        raise ValueError(f"optuna is not installed: {install_command('tune')}")
    from medcap.tuning.search import BEST, summary, tune

    result = tune(args.config, args.space, args.trials, args.out, args.overrides)
    print("\n".join([*summary(result), f"Recipe: {args.out / BEST}\nReport: {args.out / 'report.html'}"]))
