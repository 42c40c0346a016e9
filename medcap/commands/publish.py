"""`medcap publish` and `medcap average`."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcap.commands.options import add_command, output_option

if TYPE_CHECKING:
    from medcap.publish.release import Writer


FORMATS = {
    "merge": "write a full model with the adapter merged into its base",
    "onnx": "export encoder and decoder to ONNX (extra: onnx)",
    "space": "write a Gradio app for Hugging Face Spaces",
}


def add_commands(commands: Any) -> None:
    """Add `publish` and `average`."""
    publish = add_command(
        commands,
        "publish",
        _publish,
        "build a release folder, or push it to the Hub",
        "medcap publish runs/mine --evaluation eval/mine --to runs/mine/release",
    )
    publish.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a training run")
    destination = publish.add_mutually_exclusive_group(required=True)
    output_option(destination, "folder", "--to", help="new folder for the release")
    destination.add_argument("--repo-id", "--repo_id", help="NAMESPACE/NAME on the Hub")
    visibility = publish.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="make the repository private (default)")
    visibility.add_argument("--public", action="store_true", help="make the repository public")
    publish.add_argument("--overwrite", action="store_true", help="replace a repository that was not made by medcap")
    publish.add_argument("--evaluation", type=Path, help="output folder of medcap evaluate (default: RUN_DIR/eval)")
    publish.add_argument(
        "--comparison", type=Path, help="comparison.json of medcap compare (default: that of RUN_DIR/comparison)"
    )
    publish.add_argument("--base", help="Hub name of the base, if training read it from a folder")
    formats = publish.add_mutually_exclusive_group()
    for name, text in FORMATS.items():
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=f"with --to: {text}")

    average = add_command(
        commands,
        "average",
        _average,
        "average adapters of one base, or a run's best epochs",
        "medcap average runs/mine --best 3 --out runs/average",
    )
    average.add_argument("adapters", nargs="+", metavar="ADAPTER", help="adapters, or checkpoints of a run")
    output_option(average, "folder", required=True, help="new folder for the average, an adapter like others")
    average.add_argument("--weights", type=float, nargs="+", help="a number per adapter (default: equal)")
    average.add_argument("--best", type=int, metavar="N", help="average the N best checkpoints of the run ADAPTER")


def _publish(args: argparse.Namespace) -> None:
    from medcap.locks import lock_folder
    from medcap.publish.epoch_releases import push_run
    from medcap.publish.hub_client import Destination, check_access
    from medcap.publish.release import build_release
    from medcap.publish.run_paths import next_release

    _check(args)
    to = None
    if args.repo_id is not None:
        to = Destination(args.repo_id, private=not args.public, overwrite=args.overwrite)
        to = replace(to, repo_id=check_access(to))  # before anything is written
    run = args.run_dir
    with lock_folder(run) if run.is_dir() else contextlib.nullcontext():  # a run that is training changes
        release = build_release(
            run,
            args.to or next_release(run),
            evaluation=args.evaluation,
            comparison=args.comparison,
            base=args.base,
            repo_id=to.repo_id if to else None,
            write=_writer(args),
        )
        print(push_run(run, release, to) if to else release)


def _average(args: argparse.Namespace) -> None:
    from medcap.publish.average import best_checkpoints, write_average
    from medcap.recipe import RecipeError

    adapters = args.adapters
    if args.best is not None:
        if len(adapters) > 1 or args.weights:
            raise RecipeError("--best takes the folder of one run, and no --weights")
        adapters = best_checkpoints(Path(adapters[0]), args.best)
    print(f"{write_average(adapters, args.out, args.weights)}: the average of {', '.join(adapters)}")


def _check(args: argparse.Namespace) -> None:
    """Raise RecipeError for options that would have no effect."""
    from medcap.recipe import RecipeError

    if args.to is None and args.format:
        raise RecipeError("--merge, --onnx and --space write a folder: use --to DIR, not --repo-id")
    for name in ("private", "public", "overwrite"):
        if args.to is not None and getattr(args, name):
            raise RecipeError(f"--{name} applies to a Hub repository: use --repo-id, not --to")


def _writer(args: argparse.Namespace) -> Writer | None:
    """Return the writer of the requested format; None for an adapter."""
    from medcap.publish.merge import write_merged
    from medcap.publish.onnx_export import write_onnx
    from medcap.publish.space import write_space

    return {"merge": write_merged, "onnx": write_onnx, "space": write_space}.get(args.format)
