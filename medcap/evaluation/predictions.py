"""Predictions as `ID,Caption` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medcap.data.tables import read_column
from medcap.io import write_csv


def write_predictions(path: Path, captions: Mapping[str, str]) -> None:
    """Write a CSV with the header `ID,Caption`, in the given order: a valid ImageCLEFmedical submission."""
    write_csv(path, ("ID", "Caption"), captions.items())


def read_pairs(predictions: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Return ids, predictions and references of two `ID,Caption` files, in the order of the references.

    Raises:
        ValueError: An id is in one of the files only.
    """
    made, true = read_column(predictions, "Caption"), read_column(references, "Caption")
    for path, missing in ((predictions, true.keys() - made.keys()), (references, made.keys() - true.keys())):
        if missing:
            raise ValueError(f"{path}: {len(missing)} ids are missing, {min(missing)} the first")
    return list(true), [made[image_id] for image_id in true], list(true.values())
