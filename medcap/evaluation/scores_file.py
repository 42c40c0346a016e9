"""`scores.csv`: each image's scores and statistics, from which systems are compared without their texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from medcap.data.tables import read_table
from medcap.io import write_csv
from medcap.metrics.statistics import METRICS, Statistics

_BLEU = ("words", "closest", *(f"{kind}_{n}" for kind in ("matches", "possible") for n in range(1, 5)))
_METEOR = ("words", "reference_words", "matches", "reference_matches", "chunks", "matched")
SUMS = (*(f"bleu_{name}" for name in _BLEU), *(f"meteor_{name}" for name in _METEOR))


def write_scores(path: Path, ids: Sequence[str], groups: Sequence[Hashable], statistics: Statistics) -> None:
    """Write one line per image: ID, group, the metrics, and the statistics of BLEU and METEOR.

    A group is written as a number, so that no patient's name is published. Numbers are read back exactly. METEOR's
    statistics are required.
    """
    assert statistics.meteor is not None
    numbers: dict[Hashable, int] = {}
    names = ["" if group is None else numbers.setdefault(group, len(numbers)) for group in groups]
    columns = statistics.per_image()
    sums = np.column_stack([statistics.bleu, statistics.meteor])
    rows = zip(ids, names, *(columns[name].tolist() for name in METRICS), *sums.T.tolist(), strict=True)
    write_csv(path, ("ID", "group", *METRICS, *SUMS), rows)


def read_scores(path: Path) -> tuple[list[str], list[str | None], Statistics]:
    """Return the ids, groups and statistics that `write_scores` wrote; raises ValueError for a missing column."""
    table = read_table(path, ["ID", "group", *METRICS, *SUMS])
    sums = np.array([table[name] for name in SUMS], float).T
    bleu, meteor = sums[:, : len(_BLEU)], sums[:, len(_BLEU) :]
    rouge_l, cider = (np.array(table[name], float) for name in ("rouge_l", "cider"))
    return list(table["ID"]), [group or None for group in table["group"]], Statistics(bleu, rouge_l, cider, meteor)
