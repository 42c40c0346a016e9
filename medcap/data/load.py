"""The one entry to data of every format: what training, evaluation and audits read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict

from medcap.data.dicom import register_dicom
from medcap.data.layout import DataLayout, LayoutName, split_of
from medcap.data.readers import find_csvs, find_metadata, read_csv, read_hub, read_imagefolder
from medcap.data.rocov2 import SPLITS, read_rocov2
from medcap.data.selection import Selection, select_rows

if TYPE_CHECKING:  # transformers takes seconds to import
    from medcap.recipe import DataArguments


def load_data(
    path: str | os.PathLike[str],
    layout: DataLayout | None = None,
    selection: Selection | None = None,
    splits: Sequence[str] = SPLITS,
    num_proc: int | None = None,
) -> DatasetDict:
    """Return the rows of `splits` that `selection` selects, with the columns of `medcap.data.selection.FEATURES`.

    `path` is a folder, a CSV file, or the name of a data set on the Hub; `layout` says how it is laid out (None: as
    found). What became of every row: `drop_counts`. No image is decoded, as in `medcap.data.rocov2.load_rocov2`.
    Raises FileNotFoundError where there is no data, and ValueError for what is wrong in it.
    """
    selection = selection or Selection()
    raw = read_data(path, layout, splits, others_too=selection.exclude_leaks)
    return select_rows(raw, [split_of(split) or split for split in splits], selection, num_proc)


def load_recipe_data(recipe: DataArguments, splits: Sequence[str]) -> DatasetDict:
    """Return the rows of `splits` that a recipe asks for. Raises as `load_data`."""
    layout = DataLayout(**{key.name: getattr(recipe, key.name) for key in fields(DataLayout)})
    selection = Selection(
        fraction=recipe.train_fraction,
        seed=recipe.fraction_seed,
        max_broken=recipe.max_broken,
        license_filter=recipe.license_filter,
        dedupe=recipe.dedupe,
        exclude_leaks=recipe.exclude_leaks,
    )
    return load_data(recipe.data_dir, layout, selection, splits)


def read_data(
    path: str | os.PathLike[str], layout: DataLayout | None = None, splits: Sequence[str] = (), others_too: bool = True
) -> dict[str, Dataset]:
    """Return the raw rows of `splits`, and with `others_too` also of whatever else of train, valid and test there is.

    Columns as `FEATURES`, texts as they are, None for an image that is not there. Raises as `load_data`.
    """
    register_dicom()  # `datasets` decodes with Pillow
    layout, splits = layout or DataLayout(), [split_of(split) or split for split in splits]
    kind = find_layout(path, layout.data_format)
    if kind == "rocov2":
        return read_rocov2(path, splits, others_too)
    found = _read_own(path, layout, kind)
    lacking = [split for split in splits if split not in found]
    if lacking:
        there = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in found.items())
        raise ValueError(
            f"no split {lacking[0]!r} in {path}: it has {there}; give it one, or where train alone is given, more "
            "rows, valid_fraction or test_fraction"
        )
    return {split: found[split] for split in SPLITS if split in (found if others_too else splits)}


def find_layout(path: str | os.PathLike[str], requested: LayoutName = "auto") -> LayoutName:
    """Return `requested`, or for "auto" the format of what lies at `path`: rocov2, imagefolder, csv or hub.

    Told from names of files: `*_captions.csv` is ROCOv2's layout, `metadata.*` (also in split folders) an image
    folder, a file or `train.csv` and its like are CSV; the rest is hub: parquet files, and what is no path at all.
    """
    place = Path(path).expanduser()
    if requested != "auto":
        return requested
    if place.is_file():
        return "csv"
    if not place.is_dir():
        return "hub"
    if any(place.glob("*_captions.csv")):
        return "rocov2"
    if find_metadata(place):
        return "imagefolder"
    return "csv" if find_csvs(place) else "hub"


def _read_own(path: str | os.PathLike[str], layout: DataLayout, kind: LayoutName) -> dict[str, Dataset]:
    place = Path(path).expanduser()
    if kind == "imagefolder":
        return read_imagefolder(place, layout)
    if kind == "csv":
        return read_csv(place, layout)
    nothing = (
        f"no data at {str(path)!r}: looked for a folder with train_captions.csv (ROCOv2), metadata.csv or "
        "metadata.jsonl (imagefolder), train.csv, or parquet files, for a CSV file, and for a data set "
        "NAMESPACE/NAME on the Hub; `medcap data phantom --out DIR` makes one"
    )
    return read_hub(str(place if place.exists() else path), layout, nothing)
