"""`medcap ...`: parses the command line, calls one function of a room, prints what it returns.

Rooms are imported when their command runs, so that `medcap --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys

from medcap import __version__
from medcap.commands import caption, data, evaluate, publish
from medcap.commands.options import add_command
from medcap.commands.train import train
from medcap.logs import configure_logging, report_errors


def main(words: list[str] | None = None) -> None:
    """Run one command; ends with status 2 for a wrong command or recipe, 1 for failed work."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["train"]:  # every word belongs to the recipe
        sys.exit(train(words[1:]))
    args = make_parser().parse_args(words)
    configure_logging()
    with report_errors(args.debug):
        check_alone(words[0])
        args.run(args)


def check_alone(command: str) -> None:
    """RecipeError where several processes were started: each would do all of the work, and write the same files."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from medcap.recipe import RecipeError

        raise RecipeError(f"medcap {command} works in one process: start it without accelerate launch")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands but `train`, whose options are the keys of a recipe."""
    parser = argparse.ArgumentParser(prog="medcap", description="Radiology image captioning: BLIP, LoRA, ROCOv2.")
    parser.add_argument("--version", action="version", version=f"medcap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data.add_commands(commands)
    add_command(commands, "train", None, "train a recipe: medcap train --config recipes/X.yaml [--any_key value]")
    evaluate.add_commands(commands)
    caption.add_commands(commands)
    publish.add_commands(commands)
    return parser


if __name__ == "__main__":
    main()
