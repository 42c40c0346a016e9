"""Options --accelerate and --num_processes, which start a command in several processes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medcap.commands.parser import Parser
from medcap.launch import launch_command, run_launched


def launch_options(parser: argparse.ArgumentParser) -> None:
    """Add --accelerate and --num_processes."""
    group = parser.add_argument_group("several processes", "see docs/scaling-out.md")
    group.add_argument("--accelerate", metavar="NAME", help="configuration of accelerate: ddp, cpu-ddp, or a file")
    group.add_argument("--num_processes", "--num-processes", type=int, metavar="N", help="number of processes")


def is_launched(arguments: list[str]) -> bool:
    """Return whether the arguments have an option of `launch_options`."""
    options, _ = _parse(arguments, "medcap evaluate")
    return options.accelerate is not None or options.num_processes is not None


def launch(arguments: list[str], config: str | None, module: str | None = None) -> int:
    """Run scripts/train.py, or a module, with these arguments through accelerate; return its exit status.

    `config` is the configuration without --accelerate; None: that of accelerate.
    """
    options, rest = _parse(arguments, "medcap evaluate" if module else "medcap train")
    number = None if options.num_processes is None else str(options.num_processes)
    try:
        command = launch_command(rest, options.accelerate or config, number, module)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"medcap: error: {error}\n")
        return 2
    return run_launched(command)


def has_cuda() -> bool:
    """Return whether there is a GPU of NVIDIA, without importing torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _parse(arguments: list[str], program: str) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(prog=program, add_help=False)
    parser.set_defaults(takes_keys=True)
    launch_options(parser)
    return parser.parse_known_args(arguments)
