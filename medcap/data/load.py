"""Load a data set of any layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict

from medcap.data import SPLITS
from medcap.data.dicom import register_dicom
from medcap.data.layout import DataLayout, LayoutName, split_of
from medcap.data.readers import find_csvs, find_metadata, read_csv, read_hub, read_imagefolder
from medcap.data.rocov2 import read_rocov2
from medcap.data.same_images import warn_same_images
from medcap.data.selection import Selection, select_rows
from medcap.data.sources import DataPaths, join_sources, source_names, source_paths

if TYPE_CHECKING:  # transformers takes seconds to import
    from medcap.recipe import DataArguments


def load_data(
    path: DataPaths,
    layout: DataLayout | None = None,
    selection: Selection | None = None,
    splits: Sequence[str] = SPLITS,
    num_proc: int | None = None,
) -> DatasetDict:
    """Return the selected rows of a data set; `drop_counts` reports the others.

    Columns: `image_id`, `image` (datasets.Image), `caption` (cleaned), `cuis` and `manual_cuis` (UMLS concepts; the
    second curated manually), `group` (article, patient or case) and `license`, both None if unknown. Images are
    decoded on access, and here only to find duplicates and leaks. `datasets` opens a zip again for every image; use
    `load_image` or `with_pixel_values` to read many.

    Args:
        path: A folder, a CSV file, or the name of a data set on the Hub; or several, which are joined (see
            `join_sources`) and have the column `source`.
        layout: How it is laid out; default: detected.
        selection: Which rows to use; default: all.
        splits: Of train, valid and test.
        num_proc: Number of processes that decode images; default: one per core.

    Raises:
        FileNotFoundError: There is no data at `path`.
        ValueError: A split, a column or too many images are missing, a table is invalid, or no row is left.
    """
    if isinstance(splits, str):
        raise ValueError(f"splits must be a list of names, got {splits!r}: write [{splits!r}]")
    selection = selection or Selection()
    raw = read_data(path, layout, splits, other_splits=selection.exclude_leaks)
    return select_rows(raw, [split_of(split) or split for split in splits], selection, num_proc)


def load_recipe_data(recipe: DataArguments, splits: Sequence[str]) -> DatasetDict:
    """Return the rows of `splits` that a recipe selects. Raises as `load_data`."""
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
    path: DataPaths,
    layout: DataLayout | None = None,
    splits: Sequence[str] = (),
    other_splits: bool = True,
) -> dict[str, Dataset]:
    """Return the raw rows of `splits`, and with `other_splits` also of the other splits that exist.

    The columns are those of `FEATURES`, with unchanged captions and None for a missing image. A warning counts the
    image files that are in several splits, of one source or of two. Raises as `load_data`.
    """
    register_dicom()  # `datasets` decodes with Pillow
    layout, splits = layout or DataLayout(), [split_of(split) or split for split in splits]
    paths = source_paths(path)
    if len(paths) == 1:
        data = _read(paths[0], layout, splits, other_splits)
    else:  # all splits, because their ids decide whether ids get the name of the source
        sources = {name: _read(path, layout, (), True) for name, path in zip(source_names(path), paths, strict=True)}
        data = join_sources(sources, splits)
    warn_same_images(data, ", ".join(paths))
    return {split: rows for split, rows in data.items() if other_splits or split in splits}


def _read(path: str, layout: DataLayout, splits: Sequence[str], other_splits: bool) -> Mapping[str, Dataset]:
    """Return the raw rows of one source: of `splits`, and of other splits that need not be read separately."""
    name, path = find_layout(path, layout.data_format), os.path.expanduser(path)
    if name == "rocov2":
        return read_rocov2(path, splits, other_splits, layout.allow_outside)
    read = {"imagefolder": read_imagefolder, "csv": read_csv, "hub": read_hub}[name]
    data = read(path, layout)
    if missing := [split for split in splits if split not in data]:
        sizes = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in data.items())
        raise ValueError(
            f"no split {missing[0]!r} in {path}: it has {sizes}; add this split or, if there is only train, add "
            "rows or set valid_fraction or test_fraction"
        )
    return {split: data[split] for split in SPLITS if split in data}


def describe_sources(path: DataPaths, requested: LayoutName = "auto") -> str:
    """Return path and layout of a data set, or of each source, as in "data/a (csv) and data/b (rocov2)"."""
    return " and ".join(f"{source} ({find_layout(source, requested)})" for source in source_paths(path))


def find_layout(path: str | os.PathLike[str], requested: LayoutName = "auto") -> LayoutName:
    """Return the layout of a data set by its file names: rocov2, imagefolder, csv or hub.

    `*_captions.csv` is ROCOv2, `metadata.*` (also in folders of splits) an image folder; a file, or a `train.csv` and
    the like, is CSV. Parquet files, and what is not a local path, are hub; so is the mirror of ROCOv2 when "rocov2" is
    requested. Any other `requested` layout is returned as it is.
    """
    folder = Path(path).expanduser()
    if requested not in ("auto", "rocov2"):
        return requested
    if folder.is_dir() and any(folder.glob("*_captions.csv")):
        return "rocov2"
    if requested == "rocov2":
        return "hub"
    if folder.is_file():
        return "csv"
    if folder.is_dir() and find_metadata(folder):
        return "imagefolder"
    return "csv" if folder.is_dir() and find_csvs(folder) else "hub"
