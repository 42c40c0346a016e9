"""Several data sets as one: the names of its sources, and identifiers that no two of them share."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, NamedSplit, Value, concatenate_datasets

from medcap.data import SPLITS

logger = logging.getLogger(__name__)

SOURCE = "source"  # the column of the sources' names, if there are several
DataPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def source_paths(data: DataPaths) -> list[str]:
    """Return the paths of a data set: one, or that of each source."""
    return [os.fspath(data)] if isinstance(data, (str, os.PathLike)) else [os.fspath(path) for path in data]


def source_names(data: DataPaths) -> list[str]:
    """Return the name of each source: the last part of its path, with its position if two are the same.

    They hold letters, digits, _ and - only, so that the first dot of an identifier ends the name of its source.
    """
    last = [os.path.basename(os.path.abspath(path)) for path in source_paths(data)]
    names = [re.sub(r"[^\w-]+", "-", Path(name).stem if name.lower().endswith(".csv") else name) for name in last]
    if len(set(names)) < len(names):
        return [f"{name}-{number}" for number, name in enumerate(names, 1)]
    return names


def join_sources(sources: Mapping[str, Mapping[str, Dataset]], splits: Sequence[str]) -> dict[str, Dataset]:
    """Return {split: rows} of all sources, in their order, with the column `SOURCE`.

    A split holds the rows of the sources that have it. A group gets the name of its source, as in "hospital.P1": two
    sources share no patient or article. So does every image id, but only if two sources share any.

    Args:
        sources: {name: {split: rows}} with the columns of `FEATURES`.
        splits: Splits that at least one source must have.

    Raises:
        ValueError: No source has a split.
    """
    for split in splits:
        lacking = [name for name, data in sources.items() if split not in data]
        if len(lacking) == len(sources):
            raise ValueError(f"no split {split!r} in any of {', '.join(sources)}")
        if lacking:
            logger.warning("no %s images of %s: it has no such split", split, ", ".join(lacking))
    ids = [{image_id for rows in data.values() for image_id in rows["image_id"][:]} for data in sources.values()]
    shared = [image_id for image_id, n in Counter(image_id for own in ids for image_id in own).items() if n > 1]
    if shared:
        logger.warning(
            "%d image ids are in several sources, such as %s: every id gets the name of its source, as in %s",
            len(shared), min(map(str, shared)), f"{next(iter(sources))}.{min(map(str, shared))}",
        )  # fmt: skip
    named = {
        split: [_named(data[split], name, bool(shared)) for name, data in sources.items() if split in data]
        for split in SPLITS
    }
    return {split: concatenate_datasets(parts, split=NamedSplit(split)) for split, parts in named.items() if parts}


def _named(rows: Dataset, source: str, with_ids: bool) -> Dataset:
    """Return rows with the name of their source in their groups and, `with_ids`, in their ids."""
    columns = ("group", "image_id") if with_ids else ("group",)
    features = rows.features
    for column in columns:
        values = [value and f"{source}.{value}" for value in rows[column][:]]
        rows = rows.remove_columns(column).add_column(column, values, feature=features[column])
    rows = rows.add_column(SOURCE, [source] * len(rows), feature=Value("string"))
    return rows.select_columns([*features, SOURCE])


def own_id(image_id: str, source: str) -> str:
    """Return the id that an image has in its source."""
    return image_id.removeprefix(f"{source}.")


def rows_by_source(rows: Dataset) -> dict[str, list[int]]:
    """Return {source: row numbers}; one source without a name if the data set has no `SOURCE`."""
    if SOURCE not in rows.column_names:
        return {"": list(range(len(rows)))}
    numbers: dict[str, list[int]] = {}
    for number, source in enumerate(rows.with_format(None)[SOURCE][:]):
        numbers.setdefault(source, []).append(number)
    return numbers
