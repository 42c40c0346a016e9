"""The CSV files of an evaluation: predictions.csv with the captions, scores.csv with the statistics of each image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medcap.data.tables import read_column, read_table
from medcap.io import write_csv
from medcap.metrics.statistics import METRICS, Statistics

_BLEU = ("words", "closest", *(f"{kind}_{n}" for kind in ("matches", "possible") for n in range(1, 5)))
_METEOR = ("words", "reference_words", "matches", "reference_matches", "chunks", "matched")
SUMS = (*(f"bleu_{name}" for name in _BLEU), *(f"meteor_{name}" for name in _METEOR))


def write_predictions(path: Path, captions: Mapping[str, str]) -> None:
    """Write `captions` (by image id) with the header `ID,Caption`: a valid submission to ImageCLEFmedical."""
    write_csv(path, ("ID", "Caption"), captions.items())


def read_pairs(predictions: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Return ids, predictions and references of two `ID,Caption` files, in the order of the references.

    Raises:
        ValueError: An id is in only one of the files.
    """
    predicted, true = read_column(predictions, "Caption"), read_column(references, "Caption")
    for path, missing in ((predictions, true.keys() - predicted.keys()), (references, predicted.keys() - true.keys())):
        if missing:
            raise ValueError(f"{path}: {len(missing)} ids are missing, the first: {min(missing)}")
    return list(true), [predicted[image_id] for image_id in true], list(true.values())


def write_scores(path: Path, ids: Sequence[str], groups: Sequence[Hashable], statistics: Statistics) -> None:
    """Write ID, group, metrics, and the statistics of BLEU and METEOR, which are required, for each image.

    Groups are numbered, so that names of patients are not published. Numbers are read back exactly.
    """
    assert statistics.meteor is not None
    numbers: dict[Hashable, int] = {}
    names = ["" if group is None else numbers.setdefault(group, len(numbers)) for group in groups]
    columns = statistics.per_image()
    sums = np.column_stack([statistics.bleu, statistics.meteor])
    rows = zip(ids, names, *(columns[name].tolist() for name in METRICS), *sums.T.tolist(), strict=True)
    write_csv(path, ("ID", "group", *METRICS, *SUMS), rows)


def read_scores(path: Path) -> tuple[list[str], list[str | None], Statistics]:
    """Return ids, groups and statistics of `write_scores`; ValueError for a missing column."""
    table = read_table(path, ["ID", "group", *METRICS, *SUMS])
    sums = np.array([table[name] for name in SUMS], float).T
    bleu, meteor = sums[:, : len(_BLEU)], sums[:, len(_BLEU) :]
    rouge_l, cider = (np.array(table[name], float) for name in ("rouge_l", "cider"))
    return list(table["ID"]), [group or None for group in table["group"]], Statistics(bleu, rouge_l, cider, meteor)
