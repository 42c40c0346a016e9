"""`medcap recipes`: list and copy the recipes that medcap contains."""

from __future__ import annotations

import argparse
import re
import shutil
from itertools import takewhile
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, json_option, print_result
from medcap.launch import shipped_folder

FILES = "*/*.yaml"


def add_commands(commands: Any) -> None:
    """Add `recipes` with `list` and `copy`."""
    recipes = add_command(
        commands, "recipes", None, "list and copy the recipes that medcap contains", "medcap recipes list"
    ).add_subparsers(required=True, metavar="WHAT")
    listed = add_command(
        recipes, "list", _list, "list recipes and files for accelerate and tune", "medcap recipes list --json"
    )
    json_option(listed)
    copy = add_command(
        recipes, "copy", _copy, "copy a recipe, to change it", "medcap recipes copy blip-base-rocov2/lora recipes"
    )
    copy.add_argument("name", metavar="NAME", help="a name that `medcap recipes list` prints")
    copy.add_argument(
        "folder", type=Path, nargs="?", default=Path("recipes"), metavar="DIR",
        help="the file is DIR/NAME.yaml (default: recipes)",
    )  # fmt: skip


def shipped_recipes() -> dict[str, Path]:
    """Return the files by name, such as blip-base-rocov2/lora."""
    root = shipped_folder("recipes")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob(FILES))}


def _list(args: argparse.Namespace) -> None:
    texts = {name: _about(path) for name, path in shipped_recipes().items()}
    width = max(map(len, texts))
    print_result(args, texts, "\n".join(f"{name.ljust(width)}  {text}" for name, text in texts.items()))


def _about(path: Path) -> str:
    """Return the first sentence of the comment that the file starts with."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=\.) ", " ".join(line.lstrip("# ") for line in comment))[0]


def _copy(args: argparse.Namespace) -> None:
    """Copy one file; a file that was changed is not replaced."""
    from medcap.io import atomic_path
    from medcap.recipe import RecipeError
    from medcap.recipe.suggestions import suggest

    recipes = shipped_recipes()
    if args.name not in recipes:
        raise RecipeError(f"no recipe {args.name!r}; {suggest(args.name, recipes)}see `medcap recipes list`")
    source, to = recipes[args.name], args.folder / f"{args.name}.yaml"
    if to.exists() and to.read_bytes() != source.read_bytes():
        raise RecipeError(f"{to} exists and differs from the recipe; remove it, or name another folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(to) as part:
        shutil.copyfile(source, part)
    print(to)
