"""`medcap base`: join a vision encoder and a text model to a base."""

from __future__ import annotations

import argparse
from typing import Any

from medcap.commands.options import add_command, output_option


def add_commands(commands: Any) -> None:
    """Add `base`."""
    parser = add_command(
        commands,
        "base",
        _base,
        "join a pretrained vision encoder and text model to a base",
        "medcap base --encoder facebook/dinov2-base --decoder openai-community/gpt2 --out bases/dinov2-gpt2",
    )
    parser.add_argument(
        "--encoder", required=True, help="vision encoder: Hub name or folder, such as facebook/dinov2-base"
    )
    parser.add_argument(
        "--decoder", required=True, help="text model: Hub name or folder, such as openai-community/gpt2"
    )
    output_option(parser, "folder", required=True, help="new folder for the base and a recipe that trains it")
    parser.add_argument("--image_size", type=int, help="height and width in pixels (default: the encoder's)")


def _base(args: argparse.Namespace) -> None:
    from medcap.modeling.join import RECIPE_FILE, write_base

    joined = write_base(args.encoder, args.decoder, args.out, args.image_size)
    parameters = sum(weight.numel() for weight in joined.model.parameters())
    print(f"{args.out}: {type(joined.model).__name__}, {parameters / 1e6:,.1f} M parameters")
    print(f"not trained yet: {', '.join(joined.untrained)}; {args.out / RECIPE_FILE} trains them with the adapter")
