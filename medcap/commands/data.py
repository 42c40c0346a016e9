"""`medcap quickstart` and `medcap data ...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, layout_from_args, layout_options


def add_commands(commands: Any) -> None:
    """Add `quickstart`, and `data` with what it makes, fetches and looks at."""
    quickstart = add_command(commands, "quickstart", _quickstart, "the whole story offline, on phantoms")
    quickstart.add_argument(
        "--out", type=Path, default=Path("quickstart"), help="folder to make (default: quickstart)"
    )
    quickstart.add_argument("--short", action="store_true", help="few images: shows that it runs, not how well")

    data = add_command(commands, "data", None, "make data sets").add_subparsers(required=True, metavar="WHAT")
    phantom = add_command(data, "phantom", _phantom, "write a small synthetic data set in ROCOv2's layout")
    phantom.add_argument("--out", type=Path, required=True, help="new or empty folder")
    for split, count in (("train", 2000), ("valid", 200), ("test", 300)):
        phantom.add_argument(f"--{split}", type=int, default=count, help=f"images (default: {count})")
    phantom.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")

    download = add_command(data, "download", _download, "fetch ROCOv2, resumed after a break, verified")
    download.add_argument("--source", choices=("zenodo", "hub"), required=True, help="zips, or the mirror's parquet")
    download.add_argument("--out", type=Path, required=True, help="folder for the files; what is complete in it stays")
    download.add_argument(
        "--splits", nargs="+", default=["train", "valid", "test"], metavar="SPLIT", help="(default: all)"
    )

    audit = add_command(data, "audit", _audit, "look for broken files, repetitions, leaks across splits, licences")
    audit.add_argument("data", metavar="DIR", help="a folder, a CSV file, or a data set's name on the Hub")
    audit.add_argument(
        "--out", type=Path, default=Path("report.json"), help="and the page beside it (default: report.json)"
    )
    audit.add_argument("--tokenizer", help="folder or Hub name of the base whose tokens are counted (default: BLIP's)")
    audit.add_argument("--max_caption_tokens", type=int, nargs="+", help="count the captions that these limits cut")
    audit.add_argument("--num_proc", type=int, help="processes that decode images (default: one a core)")
    layout_options(audit, "as in a recipe, needed where the data is not in ROCOv2's layout")


def _quickstart(args: argparse.Namespace) -> None:
    from medcap.quickstart import quickstart

    quickstart(args.out, short=args.short)


def _phantom(args: argparse.Namespace) -> None:
    from medcap.phantom.dataset import write_phantom

    write_phantom(args.out, train=args.train, valid=args.valid, test=args.test, seed=args.seed)
    print(f"{args.out}: {args.train} training, {args.valid} validation and {args.test} test images")


def _download(args: argparse.Namespace) -> None:
    from medcap.data.download import download_hub, download_zenodo

    fetch = download_zenodo if args.source == "zenodo" else download_hub
    for path in fetch(args.out, args.splits):
        print(path)


def _audit(args: argparse.Namespace) -> None:
    from medcap.data.audit import LIMITS
    from medcap.reporting.audit_page import summary, write_audit

    report = write_audit(
        args.data, args.out, args.tokenizer, args.max_caption_tokens or LIMITS, args.num_proc, layout_from_args(args)
    )
    print(f"{summary(report)}\n\n{args.out} holds all of it, {args.out.with_suffix('.html')} shows it")
