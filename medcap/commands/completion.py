"""`medcap completion`: the script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from medcap.commands.options import add_command


def add_commands(commands: Any, root: argparse.ArgumentParser) -> None:
    """Add `completion`, which completes the commands of the parser `root` and the recipe keys of `train`."""
    example = "medcap completion bash > ~/.local/share/bash-completion/completions/medcap"
    text = "print a script that completes commands, options and files in a shell"
    parser = add_command(commands, "completion", _print, text, example)
    parser.add_argument("shell", choices=("bash", "zsh"), help="zsh: write it into _medcap in a folder of $fpath")
    parser.set_defaults(root=root, train=commands.choices["train"])


def _print(args: argparse.Namespace) -> None:
    import shtab

    from medcap.recipe.values import key_types

    for key in key_types():
        args.train.add_argument(f"--{key}")
    script = shtab.complete(args.root, args.shell)
    # with -o default bash completes a file name where there is no other completion
    print(script.replace("\ncomplete -o ", "\ncomplete -o default -o "))
