"""Merge an adapter into its base: a stand-alone model with identical captions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from medcap.data.images import load_image
from medcap.data.load import load_recipe_data
from medcap.data.sources import source_paths
from medcap.inference import MAX_CAPTION_TOKENS, load_captioner
from medcap.modeling.adapter import adapter_recipe, base_of, image_size_of
from medcap.modeling.families import family_of
from medcap.modeling.generation import decode_captions
from medcap.modeling.load import load_base
from medcap.phantom.images import draw, random_phantom
from medcap.publish.release import RELEASE_FILES, check_files, write_card, write_files
from medcap.publish.run_paths import WEIGHTS
from medcap.publish.run_reader import ReleaseSource
from medcap.recipe import DataArguments

NUM_CHECKED_IMAGES = 16
MERGED_MODEL = ("config.json", "model.safetensors")
NEEDED = ("generation_config.json", "processor_config.json", "README.md")


def write_merged(folder: Path, source: ReleaseSource) -> None:
    """Write the run's adapter, merged into its base, into `folder`: a model that needs transformers only.

    This is a `Writer` for `build_release`.

    Raises:
        ValueError: The written model generates another caption than the adapter.
    """
    merged = merge(source.adapter)
    merged.save_pretrained(folder)
    source = replace(source, card_data=replace(source.card_data, config=merged.config))
    complete_release(folder, source, "merged", MERGED_MODEL, partial(plain_captions, folder))


def complete_release(
    folder: Path,
    source: ReleaseSource,
    format: Literal["merged", "onnx"],
    model_files: tuple[str, ...],
    caption: Callable[[Sequence[Image.Image], str], list[str]],
) -> None:
    """Add the other files of a release to `model_files` in `folder`, and check its captions and files.

    `caption` generates captions with the written model from images and a prompt; they must be exactly the adapter's.
    """
    source = replace(source, card_data=replace(source.card_data, format=format))
    write_files(folder, source)  # replaces the model's own generation_config.json
    images, description = check_images(source.adapter)
    check_captions(caption(images, source.card_data.recipe.get("prompt", "")), source.adapter, images)
    sys.stderr.write(f"the captions of {len(images)} images ({description}) are identical to the adapter's\n")
    write_card(folder, source.card_data)
    allowed = RELEASE_FILES - {WEIGHTS, "adapter_config.json"} | {*model_files}
    check_files(folder, (*model_files, *NEEDED), allowed, source.local_paths)


def merge(adapter: Path) -> PreTrainedModel:
    """Return the adapter's base with the adapter merged into its weights, in float32.

    BLIP's position embeddings are resized to the adapter's image size, so no interpolation is needed at inference.
    """
    base, revision = base_of(str(adapter))
    logging.disable_progress_bar()  # would show the copying of weights in memory
    model, _ = load_base(base, image_size=image_size_of(str(adapter)), revision=revision, model_code="plain")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    merged.tie_weights()  # an adapter with trained embeddings holds the same weight twice, for embeddings and head
    return merged


def check_images(adapter: Path) -> tuple[list[Image.Image], str]:
    """Return up to 16 test images of the adapter's data set, or phantoms without it, and a description of them."""
    recipe = adapter_recipe(str(adapter))
    paths = [Path(path) for path in source_paths(recipe["data_dir"])]
    if all(path.exists() for path in paths):
        keys = {key: recipe[key] for key in vars(DataArguments()) if key in recipe}
        try:
            rows = load_recipe_data(DataArguments(**{**keys, "exclude_leaks": False, "dedupe": False}), ["test"])
            images = rows["test"][:NUM_CHECKED_IMAGES]["image"]
            return [load_image(image) for image in images], f"test images of {', '.join(path.name for path in paths)}"
        except (OSError, ValueError):  # no test split, or its images are missing
            pass
    return _phantoms(), "phantoms: the data set's test images are not available"


def _phantoms() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    planes = [draw(random_phantom(rng), rng) for _ in range(NUM_CHECKED_IMAGES)]  # (H, W) in 0..1
    return [Image.fromarray((plane * 255).astype(np.uint8)).convert("RGB") for plane in planes]


def check_captions(captions: Sequence[str], adapter: Path, images: Sequence[Image.Image]) -> None:
    """Raise ValueError unless `captions` of the exported model are the adapter's captions of `images`."""
    expected = load_captioner(str(adapter), precision="fp32", detokenize=False).caption(images)
    for number, (caption, reference) in enumerate(zip(captions, expected, strict=True), 1):
        if caption != reference:
            raise ValueError(
                f"image {number}: the exported model generates {caption!r}, the adapter {reference!r}; "
                "nothing was written"
            )


def plain_captions(model: Path, images: Sequence[Image.Image], prompt: str) -> list[str]:
    """Caption one image at a time by the modules of transformers; the captions are not detokenized."""
    family = family_of(*load_base(str(model), model_code="plain"))
    generation_config = GenerationConfig.from_pretrained(model)
    collate, pixels = family.collator(MAX_CAPTION_TOKENS, prompt), family.pixels()
    captions = []
    for image in images:
        batch = collate([{"pixel_values": pixels(image)}])
        with torch.inference_mode():
            features = None if family.feature_obstacle() else family.encode(batch["pixel_values"])
            ids = family.generate(batch, features, generation_config, prompt)
        captions += decode_captions(family.tokenizer, ids, detokenize=False)
    return captions
