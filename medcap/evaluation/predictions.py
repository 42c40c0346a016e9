"""Predictions as `ID,Caption` files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from medcap.data.tables import read_column
from medcap.io import atomic_file


def write_predictions(path: Path, captions: Mapping[str, str]) -> None:
    """Write a CSV with the header `ID,Caption`, in the order given: an ImageCLEFmedical submission as it stands."""
    with atomic_file(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ID", "Caption"))
        writer.writerows(captions.items())


def paired(predictions: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Ids, predictions and references of two `ID,Caption` files, in the order of the references.

    Raises ValueError when an id stands in one of them only: nothing is left out in silence.
    """
    made, said = read_column(predictions, "Caption"), read_column(references, "Caption")
    for where, lacking in ((predictions, said.keys() - made.keys()), (references, made.keys() - said.keys())):
        if lacking:
            raise ValueError(f"{where}: {len(lacking)} ids are missing, {min(lacking)} the first")
    return list(said), [made[image_id] for image_id in said], list(said.values())
