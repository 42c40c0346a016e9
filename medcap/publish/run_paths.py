"""Where things lie in a run: the releases of its epochs, and the evaluation of its adapter."""

from __future__ import annotations

import re
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS

EPOCHS = "pushes"  # the folder of the epochs' releases


def epoch_releases(run: Path) -> list[Path]:
    """The releases of the epochs of `run`, the first epoch first."""
    found = (path for path in (run / EPOCHS).glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name))
    return sorted(found, key=epoch_number)


def epoch_number(release: Path) -> int:
    """Which epoch a release of `epoch_releases` is of, from 1."""
    return _number(release)


def evaluation_of(run: Path) -> Path | None:
    """Where the adapter of `run` was evaluated: RUN/eval, else the release of the epoch that it is from, if any."""
    if (run / "eval" / "metrics.json").is_file():
        return run / "eval"
    adapter = run / "adapter" / WEIGHTS
    if not adapter.is_file():
        return None
    weights = adapter.read_bytes()
    return next((path for path in epoch_releases(run) if (path / WEIGHTS).read_bytes() == weights), None)


def releases(run: Path) -> list[Path]:
    """The releases of the adapter of `run`, the last one last."""
    found = (path for path in run.glob("release-*") if re.fullmatch(r"release-\d+", path.name))
    return sorted(found, key=_number)


def next_release(run: Path) -> Path:
    """A folder that no release has yet: what is pushed stays as it was pushed."""
    made = releases(run)
    return run / f"release-{_number(made[-1]) + 1 if made else 1}"


def _number(release: Path) -> int:
    return int(release.name.rpartition("-")[2])
