"""The folder of a run: recipe, environment and adapter, and the checkpoint and settings that it resumes with."""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers.trainer_callback import TrainerState

from medcap.data.selection import drop_counts, fingerprint, image_fingerprint
from medcap.data.sources import rows_by_source
from medcap.disk import writing
from medcap.environment import environment
from medcap.io import commit_folder, staging_folder, write_json
from medcap.modeling.adapter import trained_folder
from medcap.modeling.lora import saved_bytes
from medcap.modeling.lora_init import Weights, save_weights
from medcap.modeling.precision import precision_name
from medcap.recipe import Recipe, RecipeError, read_recipe
from medcap.training.checkpoints import CHECKSUMS, STATE, checkpoint_of, checkpoints, find_damage_for_resume
from medcap.training.setup import AdaptedModel

logger = logging.getLogger(__name__)

# keys that do not affect the result: paths, display, reading and pushing (`data_dir` is compared by its content)
FREE = {
    "output_dir", "data_dir", "resume_from_checkpoint", "allow_changes", "disable_tqdm", "report_to",
    "dataloader_num_workers", "feature_cache", "feature_cache_gb", "save_total_limit", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_overwrite",
}  # fmt: skip


def start_run(recipe: Recipe, data: DatasetDict, adapted: AdaptedModel, checkpoint: str | None = None) -> None:
    """Create the folder of a run, and write `recipe.yaml` and `environment.json`.

    With a `checkpoint` the run is resumed: RecipeError is raised if its data, base model or precision have changed,
    without `allow_changes`, and files that an interruption left incomplete are removed.
    """
    run = Path(recipe.training.output_dir)
    now = {
        **environment(),
        "precision": precision_name(adapted.dtype),
        "seed": recipe.training.seed,
        "data": describe(data),
        "base": adapted.base_sha256,
    }
    if checkpoint is not None:
        refuse_changes(recipe, environment_changes(read_environment(run), now))
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    if checkpoint is not None and recipe.training.load_best_model_at_end:
        adopt_best(run, Path(checkpoint))
    recipe.save(run / "recipe.yaml")
    write_json(run / "environment.json", now)


def adopt_best(run: Path, checkpoint: Path) -> None:
    """Copy the best checkpoint so far into `run` if it resumes from another run: it loads none from elsewhere.

    Raises RecipeError if `run` has another checkpoint of that step.
    """
    best = checkpoint_of(checkpoint.parent, TrainerState.load_from_json(str(checkpoint / STATE)).best_global_step)
    if best is None or checkpoint.parent.resolve() == run.resolve():
        return
    own = run / best.name
    if own.exists() and not filecmp.cmp(own / CHECKSUMS, best / CHECKSUMS, shallow=False):
        raise RecipeError(f"{own} is of another run than {checkpoint}: resume into a new --output_dir")
    if not own.exists():
        part = staging_folder(own)
        shutil.copytree(best, part, dirs_exist_ok=True)
        commit_folder(part, own)


def record_time(run: Path, seconds: float) -> None:
    """Add the duration of training in seconds to `environment.json`."""
    write_json(run / "environment.json", {**read_environment(run), "training_seconds": round(seconds, 1)})


def remove_leftovers(run: Path) -> None:
    """Remove files and folders that were being written or removed when the run was killed."""
    for pattern in ("*.part", "samples/*.part", "pushes/*.part", "pushes/*.run"):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_trained(run: Path, gathered: Weights | None, adapted: AdaptedModel, recipe: Recipe) -> None:
    """Write the folder "adapter" of a run, or "model" without an adapter; `gathered`: see `save_weights`."""
    save_adapter(run / ("model" if recipe.lora.adapter == "none" else "adapter"), adapted, recipe, gathered)


def save_adapter(folder: Path, adapted: AdaptedModel, recipe: Recipe, gathered: Weights | None = None) -> None:
    """Write the adapter or model, processor, generation config and recipe to `folder`, atomically and not pickled."""
    part = staging_folder(folder)
    try:
        with writing(folder, saved_bytes(adapted.model), "run the same command again: it resumes and writes it"):
            save_weights(adapted.model, part, adapted.initial, gathered)
            for saved in (adapted.processor, adapted.generation_config):
                saved.save_pretrained(part)
            recipe.save(part / "recipe.yaml")
            commit_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def describe(data: DatasetDict) -> dict[str, Any]:
    """Return the rows of each split, fingerprints of its captions and images, and the counts of dropped rows."""
    return {
        split: {
            "rows": len(rows),
            "fingerprint": fingerprint(rows),
            **image_fingerprint(rows),
            **drop_counts(rows),
            **_sources(rows),
        }
        for split, rows in data.items()
    }


def _sources(rows: Dataset) -> dict[str, Any]:
    """Return name, rows and fingerprint of each source in their order, if there are several."""
    sources = [
        {"name": name, "rows": len(numbers), "fingerprint": fingerprint(rows.select(numbers))}
        for name, numbers in rows_by_source(rows).items()
        if name
    ]
    return {"sources": sources} if sources else {}


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """Return the checkpoint to resume from; None to train from scratch.

    It is `resume_from_checkpoint`, or else the newest undamaged checkpoint of the run, so the same command resumes an
    interrupted run. A damaged checkpoint is reported, and the one before it used.

    Raises:
        RecipeError: The run is finished, its recipe differs, or the requested checkpoint is missing or damaged.
    """
    run, requested = Path(recipe.training.output_dir), recipe.training.resume_from_checkpoint
    candidates = checkpoints(run)
    if requested not in (None, "last"):
        candidates = [Path(requested)]
        if not (candidates[0] / STATE).is_file():
            raise RecipeError(f"resume_from_checkpoint: {requested} is not a checkpoint: it has no {STATE}")
        candidates = [candidates[0].resolve()]  # a link that the user names is followed
    elif requested == "last" and not candidates:
        raise RecipeError(f"resume_from_checkpoint is last, but {run} has no checkpoint")
    elif requested is None and is_finished(run):
        raise RecipeError(
            f"{run} is a finished run: use another --output_dir, or resume from its last checkpoint with "
            "--resume_from_checkpoint last"
        )
    elif candidates and not (run / "recipe.yaml").is_file() and requested is None:
        raise RecipeError(
            f"{run} is a run without recipe.yaml: resume with --resume_from_checkpoint last, or use another "
            "--output_dir"
        )
    if not candidates:
        return None
    refuse_changes(recipe, recipe_changes(run / "recipe.yaml", recipe))
    return _first_undamaged(candidates, recipe)


def is_finished(run: Path) -> bool:
    """Return whether training has finished: the adapter, or the whole model, is written last."""
    return trained_folder(run).exists()


def _first_undamaged(candidates: list[Path], recipe: Recipe) -> str | None:
    args = recipe.training
    log = logger.warning if args.process_index == 0 else logger.debug
    damaged: list[str] = []
    for checkpoint in candidates:
        if damage := find_damage_for_resume(checkpoint, args.load_best_model_at_end):
            damaged.append(f"{checkpoint} is damaged ({damage})")
            continue
        _check_optimizer(checkpoint, recipe)
        log("%sresuming from %s", "".join(f"{text}; " for text in damaged), checkpoint)
        return str(checkpoint)
    if args.resume_from_checkpoint is not None:
        raise RecipeError(
            f"resume_from_checkpoint: {'; '.join(damaged)}; name another checkpoint, or train from scratch without it"
        )
    log("%s; no other checkpoint exists, training from scratch", "; ".join(damaged))
    return None


def _check_optimizer(checkpoint: Path, recipe: Recipe) -> None:
    """Raise RecipeError for a checkpoint of `save_only_model`; log it instead if the recipe allows changes."""
    if next(checkpoint.glob("rng_state*"), None):  # the Trainer writes it with the optimizer, whatever the engine
        return
    problem = f"{checkpoint} holds only the model (save_only_model): optimizer and schedule would start again"
    if not recipe.training.allow_changes:
        raise RecipeError(f"{problem}; use another --output_dir, or resume all the same with --allow_changes")
    if recipe.training.process_index == 0:
        logger.warning("%s", problem)


def recipe_changes(written: Path, recipe: Recipe) -> list[str]:
    """Return the changes of a recipe since the file `written` when the run began; none if that is missing."""
    if not written.is_file():
        return []
    before = read_recipe(["--config", str(written)])
    keys = (before.as_dict().keys() | recipe.as_dict().keys()) - FREE
    pairs = {key: (before.value(key), recipe.value(key)) for key in sorted(keys)}
    return [f"{key} was {old!r} and is {new!r}" for key, (old, new) in pairs.items() if old != new]


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the changes of data, base model, precision and number of processes between two `environment.json`."""
    changes = []
    for split, rows in now["data"].items():
        old = before.get("data", {}).get(split, rows)
        differ = [key for key in ("rows", "fingerprint", "images") if old.get(key) != rows.get(key)]
        if differ == ["images"]:
            changes.append(f"the {split} split has other images")
        elif differ:
            changes.append(f"the {split} split has other data ({old['rows']:,} images then, {rows['rows']:,} now)")
        elif _fingerprints(old) != _fingerprints(rows):
            changes.append(f"the sources of the {split} split are others, or in another order")
    for key in ("precision", "processes"):
        if before.get(key, now[key]) != now[key]:
            changes.append(f"{key} was {before[key]} and is {now[key]}")
    if "precision was" not in " ".join(changes) and before.get("base", now["base"]) != now["base"]:
        changes.append("the base model has other weights")
    return changes


def _fingerprints(rows: Mapping[str, Any]) -> list[str]:
    return [part["fingerprint"] for part in rows.get("sources", ())]


def refuse_changes(recipe: Recipe, changes: list[str]) -> None:
    """Raise RecipeError for `changes` since the run began; log them instead if the recipe allows changes."""
    run = recipe.training.output_dir
    if changes and not recipe.training.allow_changes:
        raise RecipeError(
            f"the run in {run} began with other settings: {'; '.join(changes)}; use another --output_dir, or resume "
            "all the same with --allow_changes"
        )
    if changes and recipe.training.process_index == 0:
        logger.warning("resuming %s with changes: %s", run, "; ".join(changes))


def read_environment(run: Path) -> dict[str, Any]:
    """Return `environment.json` of a run; {} if it is missing."""
    path = run / "environment.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
