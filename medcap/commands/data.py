"""`medcap quickstart` and `medcap data ...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medcap.commands.options import (
    add_command,
    json_option,
    layout_from_args,
    layout_options,
    output_option,
    overwrite_option,
    print_result,
)


def add_commands(commands: Any) -> None:
    """Add `quickstart`, and `data` with `phantom`, `download` and `audit`."""
    quickstart = add_command(
        commands,
        "quickstart",
        _quickstart,
        "run the end-to-end demo offline on phantom images",
        "medcap quickstart --short --out quickstart",
    )
    output_option(quickstart, "folder", default=Path("quickstart"), help="output folder (default: quickstart)")
    overwrite_option(quickstart, "an earlier quickstart, which is resumed otherwise,")
    quickstart.add_argument("--short", action="store_true", help="few images and one epoch, to check that it runs")

    data = add_command(
        commands, "data", None, "create, download and audit data sets", "medcap data phantom --out data/phantom"
    ).add_subparsers(required=True, metavar="WHAT")
    phantom = add_command(
        data,
        "phantom",
        _phantom,
        "write a small synthetic data set in the layout of ROCOv2",
        "medcap data phantom --out data/phantom --train 400 --valid 50 --test 50",
    )
    output_option(phantom, "folder", required=True, help="new or empty folder")
    for split, count in (("train", 2000), ("valid", 200), ("test", 300)):
        phantom.add_argument(f"--{split}", type=int, default=count, help=f"images (default: {count})")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default: 0)")

    download = add_command(
        data,
        "download",
        _download,
        "download ROCOv2, resuming a partial download, and verify it",
        "medcap data download --source zenodo --out data/rocov2",
    )
    download.add_argument("--source", choices=("zenodo", "hub"), required=True, help="zenodo: zip; hub: parquet files")
    output_option(download, "folder", required=True, help="folder; complete files are not downloaded again")
    download.add_argument(
        "--splits", nargs="+", default=["train", "valid", "test"], metavar="SPLIT", help="default: all"
    )

    audit = add_command(
        data,
        "audit",
        _audit,
        "report broken files, duplicates, leaks between splits and licenses",
        "medcap data audit data/rocov2 --out audit/report.json",
    )
    audit.add_argument(
        "data", nargs="+", metavar="DIR", help="folders, CSV files, or data sets' names on the Hub; several are joined"
    )
    output_option(
        audit,
        "report",
        default=Path("audit/report.json"),
        help="JSON file, HTML page next to it (default: audit/report.json)",
    )
    audit.add_argument("--tokenizer", help="folder or Hub name of the base that counts tokens (default: BLIP)")
    audit.add_argument("--max_caption_tokens", type=int, nargs="+", help="limits to count truncated captions for")
    audit.add_argument("--num_proc", type=int, help="number of processes that decode images (default: one per core)")
    json_option(audit)
    layout_options(audit, "named as in a recipe; needed if the data is not in the layout of ROCOv2")


def _quickstart(args: argparse.Namespace) -> None:
    from medcap.quickstart import quickstart

    quickstart(args.out, short=args.short, overwrite=args.overwrite)


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
    print_result(args, report, f"{summary(report)}\n\nreport: {args.out} and {args.out.with_suffix('.html')}")
