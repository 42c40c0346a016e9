"""The folder of an evaluation: its files appear together, and replace only those of the same evaluation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcap.data.selection import fingerprint, image_fingerprint
from medcap.evaluation.scoring import describe_decoding
from medcap.evaluation.split import Split
from medcap.inference import Captioner
from medcap.io import PARTIAL, fsync, read_json, staging_folder, write_json
from medcap.locks import lock_folder
from medcap.modeling.load import update_digest

OPTIONS = "options.json"  # what the evaluation was made from
CONTENT = {"weights", "rows", "decoding"}  # options that are known when model and data are loaded
METRICS = "metrics.json"  # without it a folder is no evaluation
FILES = (
    OPTIONS, "predictions.csv", "scores.csv", "baselines", "baseline", "report.html", "comparison.json",
    "comparison.md", "comparison.html", METRICS,
)  # fmt: skip


@dataclass
class EvaluationFolder:
    """An evaluation that is being written.

    Attributes:
        out: Its folder.
        options: What it is made from: two evaluations with the same options have the same results.
        overwrite: Whether it may replace an evaluation with other options.
        staging: A folder in `out`, into which its files are written.
    """

    out: Path
    options: dict[str, Any]
    overwrite: bool
    staging: Path

    def start(self, captioner: Captioner, split: Split) -> Path:
        """Add the weights and the data to the options, and return the staging folder. Raises as `refuse_other`."""
        self.options |= {**content(captioner, split), "decoding": describe_decoding(captioner.generation_config)}
        refuse_other(self.out, self.options, self.overwrite)
        staging_folder(self.out / self.staging.stem)
        write_json(self.staging / OPTIONS, self.options)
        return self.staging


def content(captioner: Captioner, split: Split) -> dict[str, str]:
    """Return checksums of the weights and of the rows with their images."""
    weights = hashlib.sha256()
    update_digest(weights, captioner.model.state_dict())
    data = fingerprint(split.rows) + image_fingerprint(split.rows).get("images", "")
    return {"weights": weights.hexdigest()[:16], "rows": data}


@contextmanager
def evaluation_folder(out: Path, options: Mapping[str, Any], overwrite: bool = False) -> Iterator[EvaluationFolder]:
    """Lock `out`, and move the files of an evaluation into it at the end of the block.

    After an error `out` is unchanged, except that captions that could not be scored stay in its staging folder.

    Raises:
        FileExistsError: `out` holds an evaluation with other options, and `overwrite` is false.
        FolderInUseError: Another process writes it.
    """
    options = json.loads(json.dumps(options, default=str))  # as they are read again
    with lock_folder(out):
        refuse_other(out, options, overwrite)
        folder = EvaluationFolder(out, dict(options), overwrite, out / f"evaluation{PARTIAL}")
        try:
            yield folder
            _commit(folder)
        finally:
            if not (folder.staging / "predictions.csv").exists():
                shutil.rmtree(folder.staging, ignore_errors=True)


def refuse_other(out: Path, options: Mapping[str, Any], overwrite: bool) -> None:
    """Raise FileExistsError if `out` holds files of an evaluation with other options, those known so far."""
    if overwrite or not any((out / name).exists() for name in FILES):
        return
    before = read_options(out)
    keys = before.keys() | options.keys() if options.keys() >= CONTENT else (before.keys() | options.keys()) - CONTENT
    pairs = {key: (before.get(key), options.get(key)) for key in sorted(keys)}
    if changes := [f"{key} was {old!r} and is {new!r}" for key, (old, new) in pairs.items() if old != new]:
        what = f"another evaluation ({'; '.join(changes[:3])})" if before else "an evaluation with unknown options"
        raise FileExistsError(f"{out} holds {what}: name another --out, or replace it with --overwrite")


def read_options(out: Path) -> dict[str, Any]:
    """Return the options of the evaluation in `out`; {} without a readable file of them."""
    try:
        return dict(read_json(out / OPTIONS))
    except (OSError, ValueError, TypeError):
        return {}


def _commit(folder: EvaluationFolder) -> None:
    """Move the files out of the staging folder: between the first and the last step there is no metrics.json."""
    out, staging = folder.out, folder.staging
    for path in (*staging.rglob("*"), staging):
        fsync(path)
    is_same = read_options(out) == folder.options and (out / METRICS).exists()  # else a kill left files of both
    (out / METRICS).unlink(missing_ok=True)
    for name in FILES:
        new, old = staging / name, out / name
        if old.is_dir() and (new.exists() or not is_same):
            shutil.rmtree(old)
        elif not new.exists() and not is_same:  # of the earlier evaluation only
            old.unlink(missing_ok=True)
        if new.exists():
            new.replace(old)
    fsync(out)
    staging.rmdir()
