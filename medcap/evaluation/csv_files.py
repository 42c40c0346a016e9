"""The CSV files of an evaluation: predictions.csv with the captions, scores.csv with the statistics of each image."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medcap.data.tables import list_some, read_column, read_table
from medcap.io import unguard, write_csv
from medcap.metrics.statistics import METRICS, Statistics

_BLEU = ("words", "closest", *(f"{kind}_{n}" for kind in ("matches", "possible") for n in range(1, 5)))
_METEOR = ("words", "reference_words", "matches", "reference_matches", "chunks", "matched")
SUMS = (*(f"bleu_{name}" for name in _BLEU), *(f"meteor_{name}" for name in _METEOR))


def write_predictions(path: Path, captions: Mapping[str, str]) -> None:
    """Write `captions` (by image id) with the header `ID,Caption`: a valid submission to ImageCLEFmedical.

    Ids and captions that a spreadsheet would run as formulas have ' before them, which `read_pairs` removes.
    """
    write_csv(path, ("ID", "Caption"), captions.items())


def read_pairs(predictions: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Return ids, predictions and references of two `ID,Caption` files, in the order of the references.

    Raises:
        ValueError: A file has no rows, or an id is in only one of the files.
    """
    predicted, true = read_captions(predictions), read_captions(references)
    check_same_ids(predicted, predictions, true, references)
    return list(true), [predicted[image_id] for image_id in true], list(true.values())


def read_captions(path: Path) -> dict[str, str]:
    """Return the captions of an `ID,Caption` file by id; ValueError for a file without rows."""
    captions = {unguard(image_id): unguard(text) for image_id, text in read_column(path, "Caption").items()}
    if not captions:
        raise ValueError(f"{path}: there is no row")
    return captions


def check_same_ids(ids: Collection[str], path: Path, other_ids: Collection[str], other_path: Path) -> None:
    """Raise ValueError for ids of `path` and `other_path` that are in only one of them."""
    if not set(ids) & set(other_ids):
        raise ValueError(
            f"no id of {path} is in {other_path}: the first has {list_some(sorted(ids)[:3])}, the second "
            f"{list_some(sorted(other_ids)[:3])}"
        )
    for name, missing in ((path, set(other_ids) - set(ids)), (other_path, set(ids) - set(other_ids))):
        if missing:
            total = len(set(ids) | set(other_ids))
            raise ValueError(f"{name}: {len(missing)} of {total} ids are missing: {list_some(sorted(missing))}")


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
    return (
        list(map(unguard, table["ID"])),
        [group or None for group in table["group"]],
        Statistics(bleu, rouge_l, cider, meteor),
    )
