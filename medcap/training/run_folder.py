"""A run: the folder that training writes, and what it needs to be understood and gone on with later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from peft import PeftModel
from transformers import BlipProcessor, GenerationConfig

from medcap.data.selection import drop_counts, fingerprint, image_fingerprint
from medcap.environment import environment
from medcap.io import commit_folder, staging_folder, write_json
from medcap.modeling.blip import weights_sha256
from medcap.recipe import Recipe
from medcap.training.resume import environment_changes, read_environment, refuse_changes


def start_run(
    recipe: Recipe, data: DatasetDict, precision: str, base: PeftModel, checkpoint: str | None = None
) -> Path:
    """Write `recipe.yaml` and `environment.json` into the run's folder and return it; `precision` as settled.

    What an interruption left half written is removed. With a `checkpoint` to go on from, raises RecipeError where
    data, `base` or precision are not those that the run began with, and the recipe does not allow it.
    """
    run = Path(recipe.training.output_dir)
    now = {
        **environment(),
        "precision": precision,
        "seed": recipe.training.seed,
        "data": describe(data),
        "base": weights_sha256(base.get_base_model()),
    }
    if checkpoint is not None:
        refuse_changes(recipe, environment_changes(read_environment(run), now))
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    recipe.save(run / "recipe.yaml")
    write_json(run / "environment.json", now)
    return run


def record_time(run: Path, seconds: float) -> None:
    """Add to `environment.json` how long training took, in seconds; in a resumed run, of the work that was kept."""
    path = run / "environment.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "training_seconds": round(seconds, 1)})


def remove_leftovers(run: Path) -> None:
    """Remove what was being written, or removed, when the run was killed."""
    for pattern in ("*.part", "samples/*.part", "pushes/*.part", "pushes/*.run"):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_adapter(
    folder: Path, model: PeftModel, processor: BlipProcessor, generation_config: GenerationConfig, recipe: Recipe
) -> None:
    """Write everything that captions need beside the base: adapter, processor, generation settings, recipe.

    Written under another name and renamed when whole. Safetensors and JSON only; nothing in it is pickled.
    """
    part = staging_folder(folder)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    generation_config.save_pretrained(part)
    recipe.save(part / "recipe.yaml")
    commit_folder(part, folder)


def describe(data: DatasetDict) -> dict[str, Any]:
    """For each split: its rows, a fingerprint of ids and captions, one of images, what was left out while reading."""
    return {
        split: {"rows": len(rows), "fingerprint": fingerprint(rows), **image_fingerprint(rows), **drop_counts(rows)}
        for split, rows in data.items()
    }
