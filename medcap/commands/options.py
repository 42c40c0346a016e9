"""Options that several commands share, and the objects built from them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcap.commands.parser import Parser

if TYPE_CHECKING:
    from datasets import Dataset

    from medcap.data.layout import DataLayout
    from medcap.inference import Captioner

LAYOUT_OPTIONS = {
    "image_column": str, "caption_column": str, "group_column": str,
    "valid_fraction": float, "test_fraction": float, "split_seed": int,
}  # fmt: skip
GENERATION_OPTIONS = {
    "num_beams": int, "max_new_tokens": int, "no_repeat_ngram_size": int, "length_penalty": float,
    "min_new_tokens": int, "rerank": str, "rerank_candidates": int, "rerank_neighbors": int,
    "rerank_neighbor_weight": float, "rerank_pool": int,
}  # fmt: skip


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None] | None, text: str, example: str
) -> Parser:
    """Add a command to the subparsers `commands`, which calls `run` with the parsed arguments.

    `example` is a complete command, which ends the help.
    """
    parser: Parser = commands.add_parser(name, help=text, description=text, example=example)
    if run is not None:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
    return parser


def json_option(parser: Any) -> None:
    """Add --json, which `print_result` reads."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def print_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print the result of a command: as text, or with --json as one JSON document."""
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else text)


def output_option(parser: Any, kind: str, name: str = "--out", **options: Any) -> None:
    """Add an option for an output; `kind` is file, folder, or report (a file whose folder is created).

    `check_output` checks it before the command runs, which may take hours.
    """
    parser.add_argument(name, type=Path, **options)
    parser.set_defaults(output=(name, kind))


def check_output(args: argparse.Namespace) -> None:
    """Raise RecipeError if the output cannot be written: it has another type, or its folder does not exist."""
    name, kind = getattr(args, "output", ("", ""))
    path: Path | None = getattr(args, name.lstrip("-"), None)
    if path is None:
        return
    parents = path.absolute().parents
    existing = next(folder for folder in (path.absolute(), *parents) if folder.exists())
    if kind != "folder" and path.is_dir():
        problem = "it is a folder; name a file"
    elif kind == "file" and not parents[0].exists():
        problem = f"the folder {path.parent} does not exist; create it first"
    elif not existing.is_dir() and (kind == "folder" or existing != path.absolute()):
        problem = f"{existing} is a file; name a folder"
    elif not os.access(existing, os.W_OK):
        problem = f"{existing} is not writable; name another place"
    else:
        return
    from medcap.recipe import RecipeError

    raise RecipeError(f"{name} {path}: {problem}")


def protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add options for additional scores."""
    group = parser.add_argument_group("other scores")
    group.add_argument(
        "--protocol",
        choices=("coco", "imageclef-2025", "imageclef-2026"),
        default="coco",
        help="imageclef-YEAR: also compute the scores of ImageCLEFmedical (default: coco)",
    )
    group.add_argument(
        "--bertscore",
        action="store_true",
        help="with imageclef-YEAR: download BERTScore's model if it is missing (extra: bertscore)",
    )


def overwrite_option(parser: argparse.ArgumentParser, replaced: str) -> None:
    """Add --overwrite, without which a command does not replace other results."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {replaced} in --out")


def layout_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the options of the data layout, named as in a recipe."""
    group = parser.add_argument_group("data layout", text)
    group.add_argument("--data_format", "--data-format", choices=("auto", "rocov2", "imagefolder", "csv", "hub"))
    for name, kind in LAYOUT_OPTIONS.items():
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind)
    group.add_argument(
        "--allow_outside", "--allow-outside", action="store_true", default=None,
        help="also read image files outside the data set's folder, and links to them",
    )  # fmt: skip


def generation_options(parser: argparse.ArgumentParser) -> None:
    """Add options for loading a model and generating captions."""
    group = parser.add_argument_group("generation", "defaults: the settings of the adapter")
    for name, kind in GENERATION_OPTIONS.items():
        group.add_argument(f"--{name}", type=kind)
    group.add_argument("--revision", help="branch, tag or commit of a --model on the Hub, such as epoch-3")
    group.add_argument("--base", help="base of the adapter, if its recorded name cannot be loaded")
    group.add_argument("--image_size", type=int, help="side of the image in pixels")
    group.add_argument("--batch_size", type=int, help="images per batch (default: CPU 16, GPU as many as fit)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="precision of the computation (default: that of the adapter's recipe; auto for a base)",
    )
    group.add_argument("--no_detokenize", "--no-detokenize", action="store_true", help="write the decoder's raw text")


def captioner_from_args(args: argparse.Namespace, device: str | None = None) -> Captioner:
    """Load the captioner that --model and `generation_options` describe; `device` as for `load_captioner`."""
    from medcap.inference import load_captioner

    return load_captioner(
        args.model,
        revision=args.revision,
        base=args.base,
        image_size=args.image_size,
        generation=_given(args, GENERATION_OPTIONS),
        device=device,
        precision=args.precision,
        detokenize=not args.no_detokenize,
    )


def training_option(parser: argparse.ArgumentParser, others: str = "") -> None:
    """Add --data, which `rerank: consensus` needs, and `others`."""
    parser.add_argument("--data", help=f"data set of the training, for rerank: consensus{others}")


def with_training(captioner: Captioner, args: argparse.Namespace) -> Captioner:
    """Return the captioner with the training captions of --data if it reranks. Raises as `with_consensus`."""
    from medcap.modeling.generation import reranks
    from medcap.neighbors import with_consensus

    is_needed = args.data is not None and reranks(captioner.generation_config)
    training = training_rows(args, captioner) if is_needed else None
    return with_consensus(captioner, training, args.batch_size)


def training_rows(args: argparse.Namespace, captioner: Captioner) -> Dataset:
    """Return the training split of --data."""
    from medcap.data.load import load_data

    return load_data(args.data, layout_from_args(args, captioner.recipe), splits=["train"])["train"]


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def layout_from_args(args: argparse.Namespace, recipe: Mapping[str, Any] | None = None) -> DataLayout:
    """Return the data layout, by default that of an adapter's recipe, so that its training images are not tested.

    `allow_outside` is never taken from a recipe, which may come from a stranger.
    """
    from medcap.data.layout import DataLayout

    names = ("data_format", *LAYOUT_OPTIONS)
    trained = {name: recipe[name] for name in names if recipe and name in recipe}
    return DataLayout(**{**trained, **_given(args, (*names, "allow_outside"))})
