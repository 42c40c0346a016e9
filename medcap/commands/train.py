"""`medcap train`: scripts/train.py through `accelerate launch`."""

from __future__ import annotations

from medcap.commands.launching import has_cuda, launch


def train(arguments: list[str]) -> int:
    """Run `medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...` and return its exit status."""
    if {"-h", "--help", "--help-all"} & set(arguments):
        from medcap.recipe.help import recipe_help

        print(recipe_help(every_key="--help-all" in arguments))
        return 0
    return launch(arguments, None if has_cuda() else "cpu")
