"""`medcap caption` and `medcap demo`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from medcap.commands.options import (
    add_command,
    captioner_from_args,
    generation_options,
    output_option,
    training_option,
    training_rows,
    with_training,
)
from medcap.io import atomic_file
from medcap.logs import visible


def add_commands(commands: Any) -> None:
    """Add `caption` and `demo`."""
    caption = add_command(
        commands,
        "caption",
        _caption,
        "caption images; write one JSON line per image",
        "medcap caption scan.dcm images/ --model runs/mine/adapter --window lung --out captions.jsonl",
    )
    caption.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_DIR")
    caption.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    output_option(caption, "file", help="output file (default: stdout)")
    caption.add_argument("--frame", type=int, help="frame of multi-frame files, from 0 (default: the middle of DICOM)")
    caption.add_argument(
        "--window",
        type=_windows,
        default=(),
        metavar="NAME|CENTER,WIDTH",
        help="window of grayscale DICOM, such as lung, --window=-600,1500, or red, green and blue: lung,soft,bone "
        "(default: that of the file)",
    )
    training_option(caption)
    generation_options(caption)

    demo = add_command(
        commands,
        "demo",
        _demo,
        "open a local web page that captions images (extra: demo)",
        "medcap demo --model runs/mine/adapter",
    )
    demo.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    demo.add_argument(
        "--port", type=_port, default=7860, help="port on http://127.0.0.1, or the next free one (default: 7860)"
    )
    demo.add_argument(
        "--show_base", "--show-base", action="store_true", help="also show the caption without the adapter"
    )
    demo.add_argument(
        "--show_similar", "--show-similar", type=_count, metavar="N",
        help="show the most similar of N training images of --data with their captions: mind their licenses",
    )  # fmt: skip
    training_option(demo, " and --show_similar")
    generation_options(demo)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it can be 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images; it can be 1 or more")
    return int(text)


def _windows(text: str) -> Any:
    from medcap.data.dicom_windows import parse_windows

    try:
        return parse_windows(text)
    except ValueError as error:  # argparse prints the message of its own type only
        raise argparse.ArgumentTypeError(str(error)) from None


def _caption(args: argparse.Namespace) -> None:
    """Write a line per image; ValueError if an image has no caption, after the others have been written."""
    from medcap.captioning import caption_files, find_files

    files = find_files(args.images)  # before the model is loaded
    captioner = with_training(captioner_from_args(args), args)
    captions = caption_files(captioner, files, batch_size=args.batch_size, frame=args.frame, windows=args.window)
    n, errors = 0, list[str]()
    with contextlib.nullcontext(sys.stdout) if args.out is None else atomic_file(args.out) as file:
        for record in captions:
            n += 1
            print(visible(json.dumps(record, ensure_ascii=False)), file=file, flush=True)
            errors += [record["error"]] if "error" in record else []
    if errors:
        place = "" if args.out is None else f", see the errors in {args.out}"
        raise ValueError(f"{len(errors)} of {n} images have no caption{place}; the first: {errors[0]}")
    if not n:
        raise ValueError("none of the files is an image")


def _demo(args: argparse.Namespace) -> None:
    from medcap.demo.server import check_extra, serve
    from medcap.neighbors import sample_images
    from medcap.recipe import RecipeError

    check_extra()  # before the model is loaded
    if args.show_similar and not args.data:
        raise RecipeError("--show_similar needs the training images: name their data set with --data")
    captioner = with_training(captioner_from_args(args), args)
    rows = sample_images(training_rows(args, captioner), args.show_similar) if args.show_similar else None
    serve(captioner, args.port, args.show_base, rows)
