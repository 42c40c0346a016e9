"""A run: the folder that training writes, and what it needs to be understood and gone on with later."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from peft import PeftModel
from transformers import BlipProcessor, GenerationConfig

from medcap import __version__
from medcap.data.selection import drop_counts, fingerprint, picture_fingerprint
from medcap.modeling.blip import weights_sha256
from medcap.recipe import Recipe
from medcap.training.resume import environment_changes, read_environment, refuse_changes
from medcap.whole import empty_part, put_in_place, write_text

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "pycocoevalcap", "bitsandbytes")


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
    folder: Path, model: PeftModel, processor: BlipProcessor, captions: GenerationConfig, recipe: Recipe
) -> None:
    """Write everything that captions need beside the base: adapter, processor, generation settings, recipe.

    Written under another name and renamed when whole. Safetensors and JSON only; nothing in it is pickled.
    """
    part = empty_part(folder)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    captions.save_pretrained(part)
    recipe.save(part / "recipe.yaml")
    put_in_place(part, folder)


def environment() -> dict[str, Any]:
    """Versions, device and git commit (a dirty tree is written down) of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return {
        "medcap": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def describe(data: DatasetDict) -> dict[str, Any]:
    """For each split: its rows, a fingerprint of ids and captions, one of images, what was left out while reading."""
    return {
        split: {"rows": len(rows), "fingerprint": fingerprint(rows), **picture_fingerprint(rows), **drop_counts(rows)}
        for split, rows in data.items()
    }


def _git_commit() -> str | None:
    """The commit of the checkout that medcap runs from, or None for an installed package."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with uncommitted changes" if dirty.stdout.strip() else "")


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole: under another name first, so that nobody ever reads half a file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
