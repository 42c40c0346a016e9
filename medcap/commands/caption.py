"""`medcap caption` and `medcap demo`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, captioner_from_args, generation_options


def add_commands(commands: Any) -> None:
    """Add `caption` and `demo`."""
    caption = add_command(commands, "caption", _caption, "caption images: one JSON line each")
    caption.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_DIR")
    caption.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    caption.add_argument("--out", type=Path, help="write the lines here instead of the terminal")
    caption.add_argument("--frame", type=int, help="of files with several, from 0 (default: DICOM's middle one)")
    generation_options(caption)

    demo = add_command(commands, "demo", _demo, "a page on this machine that captions pictures (extra demo)")
    demo.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    demo.add_argument("--port", type=int, default=7860, help="of http://127.0.0.1 (default: 7860)")
    generation_options(demo)


def _caption(args: argparse.Namespace) -> None:
    from medcap.inference import caption_files

    lines = caption_files(captioner_from_args(args), args.images, batch_size=args.batch_size, frame=args.frame)
    if args.out is None:
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    part = args.out.with_name(args.out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        part.replace(args.out)
    finally:
        part.unlink(missing_ok=True)


def _demo(args: argparse.Namespace) -> None:
    from medcap.demo import check_extra, serve

    check_extra()  # before the model is loaded
    serve(captioner_from_args(args), args.port)
