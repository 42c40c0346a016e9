"""`medcap train`: scripts/train.py through `accelerate launch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command
from medcap.commands.parser import Parser
from medcap.launch import launch_command, run_training


def add_commands(commands: Any) -> None:
    """Add `train` for the list of commands and for completion; `medcap.cli.main` calls `train`."""
    text = "train a recipe; other options override its keys"
    example = "medcap train --config recipes/phantom/lora.yaml --data_dir data/phantom --output_dir runs/mine"
    parser = add_command(commands, "train", None, text, example)
    parser.add_argument("--config", metavar="RECIPE", help="YAML file of the recipe")
    _launch_options(parser)


def _launch_options(parser: Parser) -> None:
    parser.add_argument("--accelerate", default="cpu" if not _has_cuda() else None, metavar="NAME")
    parser.add_argument("--num_processes", type=int, metavar="N")
    parser.set_defaults(takes_keys=True)


def train(arguments: list[str]) -> int:
    """Run `medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...` and return its exit status."""
    if {"-h", "--help", "--help-all"} & set(arguments):
        from medcap.recipe.help import recipe_help

        print(recipe_help(every_key="--help-all" in arguments))
        return 0
    parser = Parser(prog="medcap train", add_help=False)
    _launch_options(parser)
    options, rest = parser.parse_known_args(arguments)
    try:
        command = launch_command(rest, options.accelerate, options.num_processes and str(options.num_processes))
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"medcap: error: {error}\n")
        return 2
    return run_training(command)


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
