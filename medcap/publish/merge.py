"""A stand-alone model: the adapter added to the weights of its base, and proven to say the same."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig
from transformers.utils import logging

from medcap.data.images import load_image
from medcap.data.load import load_recipe_data
from medcap.inference import adapter_recipe, load_captioner
from medcap.modeling.blip import check_model_name, decode_captions, resize_positions
from medcap.modeling.lora import merged
from medcap.phantom.images import draw, random_phantom
from medcap.publish.card_data import CardData
from medcap.publish.release import RELEASE_FILES, check_files, write_card, write_files
from medcap.publish.run_paths import WEIGHTS
from medcap.recipe import DataArguments

PICTURES = 16
MERGED_FILES = (RELEASE_FILES - {WEIGHTS, "adapter_config.json"}) | {"config.json", "model.safetensors"}
NEEDED = ("config.json", "model.safetensors", "generation_config.json", "processor_config.json", "README.md")


def write_merged(folder: Path, run: Path, evaluation: Path | None, facts: CardData, places: Collection[str]) -> None:
    """Write the run's adapter, merged into its base, into `folder`: a plain BLIP for transformers alone.

    The model is written under another name, loaded again, and must give the adapter's captions of a few pictures word
    for word. For `build_release`; ValueError also for captions that differ.
    """
    adapter, facts = run / "adapter", replace(facts, form="merged")
    merge(adapter).save_pretrained(folder)
    write_files(folder, adapter, evaluation, facts)  # and generation settings that replace the model's own
    pictures, source = some_pictures(adapter)
    said = plain_captions(folder, pictures, facts.recipe.get("prompt", ""))
    check_captions("the merged model", said, adapter, pictures)
    sys.stderr.write(f"the captions of {len(pictures)} pictures ({source}) are the adapter's, word for word\n")
    write_card(folder, facts)
    check_files(folder, NEEDED, MERGED_FILES, places)


def merge(adapter: Path) -> BlipForConditionalGeneration:
    """Return the adapter's base with the adapter added to its weights, in float32.

    Its positions are those of the adapter's image size, so that nobody has to interpolate them.
    """
    config = PeftConfig.from_pretrained(adapter)
    base = config.base_model_name_or_path or ""
    check_model_name(base)
    logging.disable_progress_bar()  # of copying weights from memory to memory
    model = BlipForConditionalGeneration.from_pretrained(base, revision=config.revision, dtype=torch.float32)
    resize_positions(model, int(BlipProcessor.from_pretrained(adapter).image_processor.size["height"]))
    return merged(PeftModel.from_pretrained(model, adapter)).eval()


def some_pictures(adapter: Path) -> tuple[list[Image.Image], str]:
    """A few test images of the adapter's data where they are on this machine, else phantoms; and which they are."""
    recipe = adapter_recipe(str(adapter))
    data = Path(recipe["data_dir"])
    if data.exists():
        keys = {key: recipe[key] for key in vars(DataArguments()) if key in recipe}
        try:
            rows = load_recipe_data(DataArguments(**{**keys, "exclude_leaks": False, "dedupe": False}), ["test"])
            chosen = rows["test"].select(range(min(PICTURES, len(rows["test"]))))
            return [load_image(row["image"]) for row in chosen], f"test images of {data.name}"
        except (OSError, ValueError):  # no test split, or its images are not there
            pass
    return _phantoms(), "phantoms: the data set's test images are not here"


def _phantoms() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    planes = [draw(random_phantom(rng), rng) for _ in range(PICTURES)]  # (H, W) in 0..1
    return [Image.fromarray((plane * 255).astype(np.uint8)).convert("RGB") for plane in planes]


def check_captions(what: str, made: Sequence[str], adapter: Path, pictures: Sequence[Image.Image]) -> None:
    """Raise ValueError unless the captions that `what` made of the pictures are those of the adapter."""
    expected = load_captioner(str(adapter), precision="fp32", detokenize=False).caption(pictures)
    for number, (said, wanted) in enumerate(zip(made, expected, strict=True), 1):
        if said != wanted:
            raise ValueError(f"of picture {number} {what} says {said!r}, the adapter {wanted!r}: nothing was written")


def plain_captions(model: Path, pictures: Sequence[Image.Image], prompt: str = "") -> list[str]:
    """Captions by transformers' own classes and `generate`, one picture at a time, as the decoder leaves them."""
    blip = BlipForConditionalGeneration.from_pretrained(model).eval()
    processor, settings = BlipProcessor.from_pretrained(model), GenerationConfig.from_pretrained(model)
    captions = []
    for picture in pictures:
        inputs = processor(images=picture, text=prompt or None, return_tensors="pt")
        with torch.inference_mode():
            ids = blip.generate(**inputs, generation_config=settings)
        captions += decode_captions(processor.tokenizer, ids, prompt, detokenize=False)
    return captions
