"""Runs with an adapter of a tiny base whose random weights change the captions."""

from __future__ import annotations

from pathlib import Path

import tiny_bases
import torch
import yaml

from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora

PROMPT = "showing an image"


def write_run(run: Path, name: str, prompt: str = PROMPT, image_size: int | None = None, **recipe: object) -> Path:
    """Write the files of a finished run of the base `name` that publishing reads, and return `run`."""
    family = family_of(*load_base(str(tiny_bases.base(name)), image_size=image_size))
    torch.manual_seed(1)
    adapted = add_lora(family.base, targets="text", r=4, alpha=32, dropout=0.0)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight)
    settings = {"num_beams": 2, "max_new_tokens": 8, "no_repeat_ngram_size": 2}
    generation_config = family.make_generation_config(**settings)
    for part in (adapted, family.processor, generation_config):
        part.save_pretrained(run / "adapter")
    recipe = {
        "data_dir": "phantoms", "model_name_or_path": str(tiny_bases.base(name)), "prompt": prompt,
        "lora_target_modules": "text", "lora_r": 4, "image_size": image_size, **settings, **recipe,
    }  # fmt: skip
    (run / "adapter" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run
