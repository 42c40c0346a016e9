"""Checkpoints that can be verified: each holds the size and checksum of all its files.

A folder is named checkpoint-N only after it is complete and synced to the disk (medcap.io). Later damage is detected
here, before anything is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from medcap.io import file_digest, remove_folder, write_text

CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"


def write_checksums(folder: Path, pending: Mapping[str, Any] | None = None) -> None:
    """Write `checksums.json` of all files in `folder`, with the work that a signal postponed as `stopped`."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
    write_text(folder / CHECKSUMS, json.dumps({"files": files, "stopped": pending}, indent=1) + "\n")


def find_damage(checkpoint: Path) -> str:
    """Return the first fault in the files of a checkpoint, such as "optimizer.pt is missing"; "" if it is complete."""
    try:
        if checkpoint.resolve() != checkpoint.parent.resolve() / checkpoint.name:
            return f"it is a link to {checkpoint.resolve()}"
        files = _read(checkpoint)["files"].items()
        for name, expected in files:
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["size"]:
                return f"{name} has {size:,} bytes of {expected['size']:,}"
            if file_digest(path) != expected["sha256"]:
                return f"{name} has another checksum"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} cannot be parsed"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if (checkpoint / STATE).is_file() else f"{STATE} is missing"


def find_damage_for_resume(checkpoint: Path, with_best: bool) -> str:
    """Return the first fault of a checkpoint or, `with_best`, of the best one, whose adapter the run may save."""
    if damage := find_damage(checkpoint):
        return damage
    try:
        state = TrainerState.load_from_json(str(checkpoint / STATE))
    except (ValueError, TypeError):
        return f"{STATE} cannot be parsed"
    step, named = state.best_global_step, state.best_model_checkpoint
    if not with_best or (not step and not named):
        return ""
    best = checkpoint_of(checkpoint.parent, step)
    if best is None or step_of(best) > state.global_step:
        return f"{STATE} has {step!r} as its best step and {named!r} as its best checkpoint"
    damage = "" if step == state.global_step else find_damage(best)
    return f"its best checkpoint, {best.name}, is damaged: {damage}" if damage else ""


def checkpoint_of(run: Path, step: Any) -> Path | None:
    """Return the folder of the checkpoint of a step, which may come from a damaged file; None if it is no step."""
    return run / f"checkpoint-{step}" if isinstance(step, int) and step > 0 else None


def find_missing_weights(checkpoint: Path) -> str:
    """Return a fault if a checkpoint has no weights in any format of the Trainer, which would only warn; else ""."""
    return "" if next(checkpoint.rglob("*model*"), None) else "it has no weights"


def pending_work(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the work that a signal postponed at this checkpoint; None for a scheduled or damaged checkpoint."""
    try:
        return _read(checkpoint)["stopped"]
    except (OSError, ValueError, KeyError):
        return None


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first."""
    folders = [path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return N of checkpoint-N."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate(run: Path, limit: int | None, best_step: int | None) -> None:
    """Remove the oldest checkpoints until `limit` are left (None or 0: no limit), except the newest and the best."""
    newest_first = checkpoints(run)
    spare = [path for path in newest_first[:0:-1] if step_of(path) != best_step]
    for path in spare[: max(len(newest_first) - limit, 0) if limit else 0]:
        remove_folder(path)


def _read(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8")))
