"""The `medcap` command: parse the arguments, call one function of the package, print its result.

The packages are imported when their command runs, so that `medcap --help` is fast.
"""

from __future__ import annotations

import argparse
import os
import sys

from medcap import __version__
from medcap.commands import (
    base,
    cache,
    caption,
    completion,
    data,
    env,
    evaluate,
    publish,
    recipes,
    score,
    train,
    tune,
    tune_decoding,
)
from medcap.commands.launching import has_cuda, is_launched, launch
from medcap.commands.options import check_output
from medcap.commands.parser import Parser
from medcap.logs import configure_logging, report_errors


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with status 2 for a wrong command or recipe and 1 for failed work."""
    configure_logging()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:  # all other arguments belong to the recipe
        sys.exit(train.train(arguments[1:]))
    parser = make_parser()
    args, overrides = parser.parse_known_args(arguments)
    if overrides and not getattr(args, "takes_keys", False):
        parser.error(f"unexpected arguments: {' '.join(overrides)}")
    args.overrides = overrides
    with report_errors(args.debug):
        check_single_process(arguments[0])
        check_output(args)
        if arguments[0] == "evaluate" and is_launched(arguments):
            sys.exit(launch(arguments, "ddp" if has_cuda() else "cpu-ddp", "medcap.cli"))
        args.run(args)


def check_single_process(command: str) -> None:
    """Raise RecipeError if several processes were launched: each would do all the work. `evaluate` shares it."""
    if command != "evaluate" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from medcap.recipe import RecipeError

        raise RecipeError(f"medcap {command} runs in one process: start it without accelerate launch")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands except `train`, whose options are the keys of a recipe."""
    parser = Parser(
        prog="medcap",
        description="Radiology image captioning with LoRA adapters.",
        example="medcap quickstart --short",
    )
    parser.add_argument("--version", action="version", version=f"medcap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data.add_commands(commands)
    recipes.add_commands(commands)
    base.add_commands(commands)
    train.add_commands(commands)
    tune.add_commands(commands)
    tune_decoding.add_commands(commands)
    evaluate.add_commands(commands)
    score.add_commands(commands)
    caption.add_commands(commands)
    publish.add_commands(commands)
    cache.add_commands(commands)
    env.add_commands(commands)
    completion.add_commands(commands, parser)
    return parser


if __name__ == "__main__":
    main()
