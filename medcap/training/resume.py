"""How a run goes on: from which checkpoint, and whether recipe, data and base are still those that it began with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcap.recipe import Recipe, RecipeError, read_recipe
from medcap.training.checkpoints import STATE, checkpoints, find_damage_for_resume

logger = logging.getLogger(__name__)

# where a run and its data lie, how it is shown, read and pushed: none of it changes what is trained (what is in
# `data_dir` does, and has a fingerprint)
FREE = {
    "output_dir", "data_dir", "resume_from_checkpoint", "allow_changes", "disable_tqdm", "report_to",
    "dataloader_num_workers", "feature_cache", "save_total_limit", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_overwrite",
}  # fmt: skip
ALLOW = "go on all the same with --allow_changes"


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """Where training goes on: `resume_from_checkpoint`, or the newest whole checkpoint of the run; None: the start.

    A run that was cut short goes on by itself when it is started again with the same recipe, and says so; a checkpoint
    that is not whole is named, and the one before it used. Raises RecipeError for a finished run, for another recipe,
    and for a checkpoint that was asked for and is not there or not whole.
    """
    run, wanted = Path(recipe.training.output_dir), recipe.training.resume_from_checkpoint
    found = checkpoints(run)
    if wanted not in (None, "last"):
        found = [_named(Path(wanted))]
    elif wanted == "last" and not found:
        raise RecipeError(f"resume_from_checkpoint is last, but {run} holds no checkpoint")
    elif wanted is None and is_finished(run):
        raise RecipeError(
            f"{run} holds a finished run: take another --output_dir, or go on from its last checkpoint with "
            "--resume_from_checkpoint last"
        )
    elif found and not (run / "recipe.yaml").is_file() and wanted is None:
        raise RecipeError(
            f"{run} holds a run of an unknown recipe: go on with --resume_from_checkpoint last, or take another "
            "--output_dir"
        )
    if not found:
        return None
    refuse_changes(recipe, recipe_changes(run / "recipe.yaml", recipe))
    return _first_whole(found, recipe)


def is_finished(run: Path) -> bool:
    """Whether training came to its end: its adapter is there, which is written last."""
    return (run / "adapter").exists()


def _named(checkpoint: Path) -> Path:
    if not (checkpoint / STATE).is_file():
        raise RecipeError(f"resume_from_checkpoint: {checkpoint} is no checkpoint: it has no {STATE}")
    return checkpoint


def _first_whole(found: list[Path], recipe: Recipe) -> str | None:
    wanted, say = recipe.training.resume_from_checkpoint, recipe.training.process_index == 0
    flaws = []
    for checkpoint in found:
        if not (found_flaw := find_damage_for_resume(checkpoint, recipe.training.load_best_model_at_end)):
            break
        flaws.append(f"{checkpoint} is not whole ({found_flaw})")
    else:
        if wanted is not None:
            raise RecipeError(
                f"resume_from_checkpoint: {'; '.join(flaws)}; name another one, or start anew without it"
            )
        if say:
            logger.warning("%s; no checkpoint is left, and the run starts over", "; ".join(flaws))
        return None
    if say and flaws:
        logger.warning("%s; the run goes on from %s", "; ".join(flaws), checkpoint.name)
    elif say:
        logger.warning("the run goes on from %s", checkpoint)
    return str(checkpoint)


def recipe_changes(written: Path, recipe: Recipe) -> list[str]:
    """Keys in which `recipe` differs from the one `written` when the run began, in words; none where there is none."""
    if not written.is_file():
        return []
    before = read_recipe(["--config", str(written)])
    keys = (before.as_dict().keys() | recipe.as_dict().keys()) - FREE
    pairs = {key: (before.value(key), recipe.value(key)) for key in sorted(keys)}
    return [f"{key} was {old!r} and is {new!r}" for key, (old, new) in pairs.items() if old != new]


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of data, base, precision and processes is not what it was, in words; of `environment.json` then and now."""
    changes = []
    for split, rows in now["data"].items():
        old = before.get("data", {}).get(split, rows)
        differ = [key for key in ("rows", "fingerprint", "images") if old.get(key) != rows.get(key)]
        if differ:
            what = "images" if differ == ["images"] else f"data ({old['rows']:,} images then, {rows['rows']:,} now)"
            changes.append(f"the {split} split has other {what}")
    for key in ("precision", "processes"):
        if before.get(key, now[key]) != now[key]:
            changes.append(f"{key} was {before[key]} and is {now[key]}")
    if "precision was" not in " ".join(changes) and before.get("base", now["base"]) != now["base"]:
        changes.append("the base model has other weights")
    return changes


def refuse_changes(recipe: Recipe, changes: list[str]) -> None:
    """Raise RecipeError for `changes` since the run began, unless the recipe allows them: then they are said."""
    run = recipe.training.output_dir
    if changes and not recipe.training.allow_changes:
        raise RecipeError(f"{run} was begun otherwise: {'; '.join(changes)}; take another --output_dir, or {ALLOW}")
    if changes and recipe.training.process_index == 0:
        logger.warning("%s goes on with changes: %s", run, "; ".join(changes))


def read_environment(run: Path) -> dict[str, Any]:
    """`environment.json` of a run; empty where there is none."""
    path = run / "environment.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
