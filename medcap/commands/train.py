"""`medcap train`: scripts/train.py through `accelerate launch`."""

from __future__ import annotations

from typing import Any

from medcap.commands.launching import has_cuda, launch, launch_options
from medcap.commands.options import add_command


def add_commands(commands: Any) -> None:
    """Add `train` for the list of commands and for completion; `medcap.cli.main` calls `train`."""
    text = "train a recipe; other options override its keys"
    example = "medcap train --config recipes/phantom/lora.yaml --data_dir data/phantom --output_dir runs/mine"
    parser = add_command(commands, "train", None, text, example)
    parser.add_argument("--config", metavar="RECIPE", help="YAML file of the recipe")
    launch_options(parser)
    parser.set_defaults(takes_keys=True)


def train(arguments: list[str]) -> int:
    """Run `medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...` and return its exit status."""
    if {"-h", "--help", "--help-all"} & set(arguments):
        from medcap.recipe.help import recipe_help

        print(recipe_help(every_key="--help-all" in arguments))
        return 0
    return launch(arguments, None if has_cuda() else "cpu")
