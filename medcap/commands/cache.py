"""`medcap cache`: list and clear the caches of image features."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, json_option, print_result
from medcap.disk import megabytes


def add_commands(commands: Any) -> None:
    """Add `cache` with `list` and `clear`."""
    cache = add_command(
        commands, "cache", None, "list and clear the caches of image features", "medcap cache list"
    ).add_subparsers(required=True, metavar="WHAT")
    listed = add_command(
        cache, "list", _list, "list the caches: model, images, size, last use", "medcap cache list --json"
    )
    clear = add_command(
        cache,
        "clear",
        _clear,
        "remove caches; a run that uses one computes its features again",
        "medcap cache clear --all",
    )
    clear.add_argument("names", nargs="*", metavar="NAME", help="names that `medcap cache list` prints")
    clear.add_argument("--all", action="store_true", help="remove all caches of the folder")
    json_option(listed)
    for parser in (listed, clear):
        parser.add_argument(
            "--folder", type=Path, help="a recipe's feature_cache (default: that of feature_cache: auto)"
        )


def _list(args: argparse.Namespace) -> None:
    from medcap.modeling.feature_store import default_folder, stored_caches

    folder = args.folder or default_folder()
    caches = stored_caches(folder)
    total = f"{folder}: {len(caches)} caches, {megabytes(sum(cache.size for cache in caches))}"
    result = [{**asdict(cache), "folder": str(cache.folder)} for cache in caches]
    print_result(args, result, "\n".join([*(cache.describe() for cache in caches), total]))


def _clear(args: argparse.Namespace) -> None:
    from medcap.io import remove_folder
    from medcap.modeling.feature_store import default_folder, stored_caches
    from medcap.recipe import RecipeError

    folder = args.folder or default_folder()
    caches = {cache.folder.name: cache for cache in stored_caches(folder)}
    if unknown := [name for name in args.names if name not in caches]:
        raise RecipeError(f"{folder} has no cache {unknown[0]}; it has {', '.join(caches) or 'none'}")
    if args.all == bool(args.names):
        raise RecipeError("name the caches to remove, see `medcap cache list`, or give --all")
    chosen = [cache for name, cache in caches.items() if args.all or name in args.names]
    for cache in chosen:
        remove_folder(cache.folder)
    print(f"{folder}: {len(chosen)} caches removed, {megabytes(sum(cache.size for cache in chosen))}")
