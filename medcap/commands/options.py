"""What several commands have in common: how one is added, its options, and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcap.data.layout import DataLayout
    from medcap.inference import Captioner

LAYOUT_OPTIONS = {
    "image_column": str, "caption_column": str, "group_column": str,
    "valid_fraction": float, "test_fraction": float, "split_seed": int,
}  # fmt: skip


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None] | None, text: str
) -> argparse.ArgumentParser:
    """Add a command to the subparsers `commands`, which calls `run` with what was parsed."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    if run is not None:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
    return parser


def protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add which scores are computed beside our own."""
    group = parser.add_argument_group("other scores")
    group.add_argument(
        "--protocol", choices=("coco", "imageclef"), default="coco", help="also as ImageCLEFmedical does"
    )
    group.add_argument(
        "--bertscore", action="store_true", help="with BERTScore: needs the extra bertscore and the Hub"
    )


def layout_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add how data are laid out, named as in a recipe."""
    group = parser.add_argument_group("format of the data", text)
    group.add_argument("--data_format", "--data-format", choices=("auto", "rocov2", "imagefolder", "csv", "hub"))
    for name, kind in LAYOUT_OPTIONS.items():
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind)


def generation_options(parser: argparse.ArgumentParser) -> None:
    """Add how a model is loaded and captions are generated."""
    group = parser.add_argument_group("generation", "as the adapter was trained, unless given")
    for name, kind in (
        ("num_beams", int), ("max_new_tokens", int), ("no_repeat_ngram_size", int), ("length_penalty", float),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=kind)
    group.add_argument("--revision", help="branch, tag or commit of a --model on the Hub, such as epoch-3")
    group.add_argument("--base", help="the adapter's base, when it is not where its name says")
    group.add_argument("--image_size", type=int, help="pixels a side")
    group.add_argument("--batch_size", type=int, help="images at once (default: 16 on a CPU, what fits on a GPU)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the computation (default: as in the adapter's recipe; of a base auto)",
    )
    group.add_argument(
        "--no_detokenize", "--no-detokenize", action="store_true", help="keep the raw text of the decoder"
    )


def captioner_from_args(args: argparse.Namespace) -> Captioner:
    """The model that `generation_options` and --model name."""
    from medcap.inference import load_captioner

    names = ("num_beams", "max_new_tokens", "no_repeat_ngram_size", "length_penalty")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return load_captioner(
        _place(args.model, args.revision),
        base=args.base,
        image_size=args.image_size,
        generation=given,
        precision=args.precision,
        detokenize=not args.no_detokenize,
    )


def _place(model: str, revision: str | None) -> str:
    """The model as it is named, or the folder that its revision was fetched into."""
    if revision is None:
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model, revision=revision)


def layout_from_args(args: argparse.Namespace, adapter: str | None = None) -> DataLayout:
    """The data's format; unless told otherwise the adapter's, or images of its training would be in the test."""
    from medcap.data.layout import DataLayout
    from medcap.inference import adapter_recipe

    recipe, names = adapter_recipe(adapter) if adapter else {}, ("data_format", *LAYOUT_OPTIONS)
    trained = {name: recipe[name] for name in names if name in recipe}
    return DataLayout(
        **{**trained, **{name: getattr(args, name) for name in names if getattr(args, name) is not None}}
    )
