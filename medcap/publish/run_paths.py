"""Paths inside a run folder: the releases of its epochs, and the evaluation of its adapter."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from transformers.utils import CONFIG_NAME as MODEL_CONFIG
from transformers.utils import SAFE_WEIGHTS_NAME as MODEL_WEIGHTS

from medcap.modeling.adapter import trained_folder

MODEL_FILES = (MODEL_CONFIG, MODEL_WEIGHTS)  # of a whole model
EPOCHS = "pushes"  # the folder of the epochs' releases


def epoch_releases(run: Path) -> list[Path]:
    """Return the releases of the epochs of `run`, in the order of the epochs."""
    return _numbered(run / EPOCHS, "epoch")


def epoch_number(release: Path) -> int:
    """Return the epoch of one of `epoch_releases`, counted from 1."""
    return int(release.name.rpartition("-")[2])


def find_evaluation(run: Path) -> Path | None:
    """Return the folder with the adapter's scores: RUN/eval, else the release of the epoch with the same weights."""
    if (run / "eval" / "metrics.json").is_file():
        return run / "eval"
    return next((path for path in epoch_releases(run) if have_same_weights(path, trained_folder(run))), None)


def find_comparison(run: Path) -> Path | None:
    """Return RUN/comparison/comparison.json, if `medcap compare` wrote it."""
    path = run / "comparison" / "comparison.json"
    return path if path.is_file() else None


def have_same_weights(*folders: Path) -> bool:
    """Whether two folders contain the same weights of an adapter or model."""
    for name in (WEIGHTS, MODEL_WEIGHTS):
        first, second = (folder / name for folder in folders)
        if first.is_file() and second.is_file():
            return filecmp.cmp(first, second, shallow=False)
    return False


def releases(run: Path) -> list[Path]:
    """Return the releases of the adapter of `run`, oldest first."""
    return _numbered(run, "release")


def next_release(run: Path) -> Path:
    """Return an unused folder name for a new release; earlier releases are not changed."""
    existing = releases(run)
    return run / f"release-{epoch_number(existing[-1]) + 1 if existing else 1}"


def _numbered(folder: Path, prefix: str) -> list[Path]:
    paths = (path for path in folder.glob(f"{prefix}-*") if re.fullmatch(rf"{prefix}-\d+", path.name))
    return sorted(paths, key=epoch_number)
