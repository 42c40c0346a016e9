"""`medcap publish`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcap.commands.options import add_command

if TYPE_CHECKING:
    from medcap.publish.release import Writer


def add_commands(commands: Any) -> None:
    """Add `publish`."""
    publish = add_command(commands, "publish", _publish, "make a release folder, or push it to the Hub")
    publish.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    where = publish.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, help="new folder for the release")
    where.add_argument("--repo-id", "--repo_id", help="NAMESPACE/NAME on the Hub")
    seen = publish.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="only you can see the repository (the default)")
    seen.add_argument("--public", action="store_true", help="anyone can see it")
    publish.add_argument("--overwrite", action="store_true", help="replace what a repository of other work holds")
    publish.add_argument("--evaluation", type=Path, help="folder that evaluate wrote (default: RUN_DIR/eval)")
    publish.add_argument("--comparison", type=Path, help="comparison.json that compare wrote")
    publish.add_argument("--base", help="name of the base on the Hub, when training read it from a folder")
    kind = publish.add_mutually_exclusive_group()
    kind.add_argument(
        "--merge", action="store_true", help="with --to: a whole model, the adapter merged into its base"
    )
    kind.add_argument("--onnx", action="store_true", help="with --to: encoder and decoder as ONNX (extra onnx)")
    kind.add_argument("--space", action="store_true", help="with --to: a page that captions pictures, for Spaces")


def _publish(args: argparse.Namespace) -> None:
    from medcap.publish.epoch_releases import push_run
    from medcap.publish.hub_client import Destination, check_access
    from medcap.publish.release import build_release
    from medcap.publish.run_paths import next_release

    _check(args)
    to = None
    if args.repo_id is not None:
        to = Destination(args.repo_id, private=not args.public, overwrite=args.overwrite)
        to = replace(to, repo_id=check_access(to))  # before anything is written for it
    release = build_release(
        args.run_dir,
        args.to or next_release(args.run_dir),
        evaluation=args.evaluation,
        comparison=args.comparison,
        base=args.base,
        repo_id=to.repo_id if to else None,
        write=_writer(args),
    )
    print(push_run(args.run_dir, release, to) if to else release)


def _check(args: argparse.Namespace) -> None:
    """Raise RecipeError for options that would have no effect."""
    from medcap.recipe import RecipeError

    if args.to is None and (args.merge or args.onnx or args.space):
        raise RecipeError("--merge, --onnx and --space make a folder: give --to DIR, not --repo-id")
    for name in ("private", "public", "overwrite"):
        if args.to is not None and getattr(args, name):
            raise RecipeError(f"--{name} is for a repository on the Hub: give --repo-id, not --to")


def _writer(args: argparse.Namespace) -> Writer | None:
    """What writes the form that is asked for, if it is another than an adapter."""
    from medcap.publish.merge import write_merged
    from medcap.publish.onnx_export import write_onnx
    from medcap.publish.space import write_space

    asked = {write_merged: args.merge, write_onnx: args.onnx, write_space: args.space}
    return next((write for write, wanted in asked.items() if wanted), None)
