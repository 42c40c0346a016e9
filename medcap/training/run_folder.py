"""The folder of a run: recipe, environment and adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from medcap.data.selection import drop_counts, fingerprint, image_fingerprint
from medcap.environment import environment
from medcap.io import commit_folder, staging_folder, write_json
from medcap.modeling.blip import weights_sha256
from medcap.modeling.precision import precision_name
from medcap.recipe import Recipe
from medcap.training.resume import environment_changes, read_environment, refuse_changes
from medcap.training.setup import AdaptedModel


def start_run(recipe: Recipe, data: DatasetDict, adapted: AdaptedModel, checkpoint: str | None = None) -> None:
    """Create the folder of a run, or check it if it is resumed, and write `recipe.yaml` and `environment.json`.

    Files that an interruption left incomplete are removed.

    Args:
        recipe: The recipe of the run.
        data: The checked splits, whose fingerprint is recorded.
        adapted: The model; the precision and the checksum of its base model are recorded.
        checkpoint: The checkpoint that the run resumes from.

    Raises:
        RecipeError: Data, base model or precision of a resumed run have changed, without `allow_changes`.
    """
    run = Path(recipe.training.output_dir)
    now = {
        **environment(),
        "precision": precision_name(adapted.dtype),
        "seed": recipe.training.seed,
        "data": describe(data),
        "base": weights_sha256(adapted.model.get_base_model()),
    }
    if checkpoint is not None:
        refuse_changes(recipe, environment_changes(read_environment(run), now))
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    recipe.save(run / "recipe.yaml")
    write_json(run / "environment.json", now)


def record_time(run: Path, seconds: float) -> None:
    """Add the duration of training in seconds to `environment.json`."""
    write_json(run / "environment.json", {**read_environment(run), "training_seconds": round(seconds, 1)})


def remove_leftovers(run: Path) -> None:
    """Remove files and folders that were being written or removed when the run was killed."""
    for pattern in ("*.part", "samples/*.part", "pushes/*.part", "pushes/*.run"):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_adapter(folder: Path, adapted: AdaptedModel, recipe: Recipe) -> None:
    """Write the adapter, processor, generation config and recipe to `folder`, atomically and without pickled files."""
    part = staging_folder(folder)
    for saved in (adapted.model, adapted.processor, adapted.generation_config):
        saved.save_pretrained(part)
    recipe.save(part / "recipe.yaml")
    commit_folder(part, folder)


def describe(data: DatasetDict) -> dict[str, Any]:
    """Return the rows of each split, fingerprints of its captions and images, and the counts of dropped rows."""
    return {
        split: {"rows": len(rows), "fingerprint": fingerprint(rows), **image_fingerprint(rows), **drop_counts(rows)}
        for split, rows in data.items()
    }
