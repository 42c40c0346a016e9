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
from transformers.trainer_utils import get_last_checkpoint

from medcap import __version__
from medcap.data.selection import drop_counts, fingerprint
from medcap.recipe import Recipe, RecipeError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "pycocoevalcap", "bitsandbytes")


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """Where training goes on: `resume_from_checkpoint`, or with "last" the run's newest checkpoint; None: the start.

    Raises RecipeError when the folder holds a run that nobody asked to go on with, or none where one was asked for.
    """
    run, wanted = Path(recipe.training.output_dir), recipe.training.resume_from_checkpoint
    last = get_last_checkpoint(str(run)) if run.is_dir() else None
    if wanted == "last":
        if last is None:
            raise RecipeError(f"resume_from_checkpoint is last, but {run} holds no checkpoint")
        return last
    if wanted:
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise RecipeError(f"resume_from_checkpoint: {wanted} is no checkpoint: it has no trainer_state.json")
        return wanted
    if last is not None or (run / "adapter").exists():
        raise RecipeError(f"{run} holds a run: go on with --resume_from_checkpoint last, or take another --output_dir")
    return None


def start_run(recipe: Recipe, data: DatasetDict, precision: str) -> Path:
    """Write `recipe.yaml` and `environment.json` into the run's folder and return it; `precision` as settled."""
    run = Path(recipe.training.output_dir)
    run.mkdir(parents=True, exist_ok=True)
    recipe.save(run / "recipe.yaml")
    seed_and_data = {"seed": recipe.training.seed, "data": describe(data)}
    write_json(run / "environment.json", {**environment(), "precision": precision, **seed_and_data})
    return run


def record_time(run: Path, seconds: float) -> None:
    """Add to `environment.json` how long training took, in seconds; in a resumed run, of the work that was kept."""
    path = run / "environment.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "training_seconds": round(seconds, 1)})


def save_adapter(
    folder: Path, model: PeftModel, processor: BlipProcessor, captions: GenerationConfig, recipe: Recipe
) -> None:
    """Write everything that captions need beside the base: adapter, processor, generation settings, recipe.

    Written under another name and renamed when whole. Safetensors and JSON only; nothing in it is pickled.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    captions.save_pretrained(part)
    recipe.save(part / "recipe.yaml")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


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
    """For each split: its rows, a fingerprint of ids and captions, and what was left out while reading."""
    return {
        split: {"rows": len(rows), "fingerprint": fingerprint(rows), **drop_counts(rows)}
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
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
