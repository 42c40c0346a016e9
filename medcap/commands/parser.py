"""The argument parser of all commands: help that ends with an example, and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any, NoReturn

_CHOICE = re.compile(r"invalid choice: '?(?P<value>[^']*?)'? \(.*?choose from (?P<allowed>.*)\)$", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations whose errors name the nearest option or choice."""

    def __init__(self, *, example: str = "", **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, epilog=f"example:\n  {example}" if example else None, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse, which names missing options first; a mistyped one is the more useful error."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not self.get_default("takes_keys"):
            self._check_options(arguments)
        return super().parse_known_args(arguments, namespace)

    def _check_options(self, arguments: list[str]) -> None:
        """Report the first unknown option; those after the name of a command are checked by its own parser."""
        runs = self.get_default("run") is not None
        stop = (lambda text: text != "--") if runs else (lambda text: text.startswith("-"))
        if runs:
            self._check_minus(arguments)
        known = {_words(name): name for name in re.findall(r"--[a-z][\w-]*", self.format_usage())} | {
            "--help": "--help"
        }
        for argument in takewhile(stop, arguments):
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and _words(name) not in known:
                close = difflib.get_close_matches(_words(name), known, n=1)
                self.error(f"unknown option {name}" + (f"; did you mean {known[close[0]]}?" if close else ""))

    def _check_minus(self, arguments: list[str]) -> None:
        """Report a list of numbers such as -600,1500 after an option: argparse would take it for another option."""
        for option, value in pairwise(arguments):
            if re.fullmatch(r"--[a-z][\w-]*", option) and re.match(r"-[\d.]+,", value):
                self.error(f"write {option}={value}, with = because the value starts with a minus")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line: the error, the allowed values, and where the help is."""
        if found := _CHOICE.search(message):
            allowed = [name.strip("' ") for name in found["allowed"].split(",")]
            problem = f"{found['value']!r} is not allowed{_suggestion(found['value'], allowed)}"
            message = f"{message[: found.start()]}{problem}; it can be {', '.join(allowed)}"
        self.exit(2, f"medcap: error: {' '.join(message.split())}; see {self.prog} --help\n")


def _suggestion(value: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _words(option: str) -> str:
    """Return an option with underscores: --batch-size and --batch_size are the same."""
    return "--" + option[2:].replace("-", "_")
