"""Data of one's own: an image folder with a metadata file, CSV files, or a data set on the Hub, as raw rows.

The readers return {split: rows} with the columns of `medcap.data.selection.FEATURES`: texts as they are, None for an
image that is not there, and no image opened. `image_id`, `cuis` and `license` are taken over where there are such
columns. What is wrong in a table is a ValueError with file and row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, NamedSplit

from medcap.data.concepts import split_cuis
from medcap.data.layout import SPLIT_NAMES, DataLayout, complete_splits, rows_by_split, split_of
from medcap.data.licenses import license_of
from medcap.data.rocov2 import open_data_set
from medcap.data.selection import FEATURES
from medcap.data.tables import list_some, read_jsonl, read_parquet, read_table

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
Table = dict[str, list[Any]]


def find_metadata(folder: Path) -> dict[str, Path]:
    """Return {"": metadata file} of an image folder, or {split: file} of its split folders; empty where none is.

    The convention of Hugging Face's imagefolder: `metadata.csv`, `.jsonl` or `.parquet`. Raises ValueError for two.
    """
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if found:
        return _unique([("", path) for path in found])
    places = sorted(place for place in folder.iterdir() if split_of(place.name))
    inner = [place / name for place in places for name in METADATA]
    return _unique([(split_of(path.parent.name), path) for path in inner if path.is_file()])


def find_csvs(place: Path) -> dict[str, Path]:
    """Return {"": file} for a CSV file, or {split: file} of the train.csv, valid.csv, test.csv in a folder."""
    if place.is_file():
        return {"": place}
    return _unique([(split_of(path.stem), path) for path in sorted(place.glob("*.csv"))])


def read_imagefolder(folder: Path, layout: DataLayout) -> dict[str, Dataset]:
    """Return the raw rows of an image folder (see `find_metadata`); file names are relative to the metadata file.

    One metadata file for all: the column `split` tells the splits, or the first folder of every file name does.
    """
    tables = find_metadata(folder)
    if not tables:
        raise ValueError(f"no {', '.join(METADATA)} in {folder}, nor in a train/, validation/ or test/ in it")
    return _read_files(tables, folder, layout, inside=True)


def read_csv(place: Path, layout: DataLayout) -> dict[str, Dataset]:
    """Return the raw rows of a CSV file, or of one for each split; paths are relative to it, or absolute.

    One CSV for all: the column `split` tells the splits.
    """
    tables = find_csvs(place)
    if not tables:
        raise ValueError(f"no CSV at {place}: give the file, or a folder with train.csv, valid.csv and test.csv")
    return _read_files(tables, place if place.is_dir() else place.parent, layout, inside=False)


def read_hub(name: str, layout: DataLayout, nothing: str) -> dict[str, Dataset]:
    """Return the raw rows of a data set on the Hub, or of a folder of parquet files; `nothing` as `open_data_set`."""
    found = open_data_set(name, nothing)
    names = _unique((split_of(split), split) for split in found)
    if not names:
        raise ValueError(f"{name}: its splits are {', '.join(found)}; needed is one called {SPLIT_NAMES}")
    given = {split: _hub_rows(found[there], split, layout, name) for split, there in names.items()}
    given = complete_splits(given, lambda rows, numbers: rows.select(numbers).flatten_indices(), layout, name)
    return {split: Dataset(rows.data, rows.info, NamedSplit(split)) for split, rows in given.items()}


def _hub_rows(rows: Dataset, split: str, layout: DataLayout, name: str) -> Dataset:
    image, where = layout.image_column or "image", f"{name}, split {split}"
    _need(rows.column_names, image, "image_column", where)
    texts = {"image_id", "cuis", "cui", "license", layout.caption_column or "caption", layout.group_column}
    table = rows.select_columns([column for column in rows.column_names if column in texts]).to_dict()
    ours = rows.select_columns(image).rename_columns({image: "image"}).cast_column("image", Image())
    ids = _texts(table["image_id"]) if "image_id" in table else [f"{split}-{row:06d}" for row in range(len(rows))]
    for column, values in {"image_id": ids, **_described(table, len(rows), layout, where)}.items():
        ours = ours.add_column(column, values, feature=FEATURES[column])
    return ours


def _read_files(tables: Mapping[str, Path], root: Path, layout: DataLayout, inside: bool) -> dict[str, Dataset]:
    read = {split: _read_rows(path, root, layout, inside) for split, path in tables.items()}
    given = read if "" not in read else _told(read[""], tables[""])
    given = complete_splits(given, _taken, layout, str(root))
    return {
        split: Dataset.from_dict({name: table[name] for name in FEATURES}, FEATURES, split=NamedSplit(split))
        for split, table in given.items()
    }


def _read_rows(path: Path, root: Path, layout: DataLayout, inside: bool) -> Table:
    """Return the columns of `FEATURES`, and "told": for each row the name of its split, blank where none is told."""
    table, column = _read(path), layout.image_column or "file_name"
    _need(table, column, "image_column", path)
    names = [str(name or "").replace("\\", "/") for name in table[column]]  # tables are also written on Windows
    _check_names(names, column, path, inside)
    paths = [os.path.abspath(path.parent / name) for name in names]
    places = [os.path.relpath(place, root) for place in paths]
    tops = [place.partition("/")[0] for place in places]
    by_folder = inside and any(split_of(top) for top in tops)
    return {
        "image_id": _texts(table["image_id"]) if "image_id" in table else _ids(places, path),
        "image": [place if os.path.isfile(place) else None for place in paths],
        **_described(table, len(names), layout, path),
        "told": [str(name or "") for name in table.get("split", tops if by_folder else [""] * len(names))],
    }


def _read(path: Path) -> Table:
    if path.suffix == ".parquet":
        return read_parquet(path)
    return read_jsonl(path) if path.suffix == ".jsonl" else dict(read_table(path, []))


def _described(table: Table, n: int, layout: DataLayout, where: object) -> Table:
    """Return what a table of `n` rows says of its images: caption, concepts, group and licence."""
    caption, nothing = layout.caption_column or "caption", [None] * n
    _need(table, caption, "caption_column", where)
    if lists := [row for row, text in enumerate(table[caption], 1) if isinstance(text, (list, dict))]:
        raise ValueError(f"{where}: {caption} must be one text, and is a list or an object in row {lists[0]}")
    if layout.group_column:
        _need(table, layout.group_column, "group_column", where)
    return {
        "caption": _texts(table[caption]),
        "cuis": [split_cuis(value) for value in table.get("cuis", table.get("cui", nothing))],
        "manual_cuis": [[]] * n,
        "group": _texts(table[layout.group_column]) if layout.group_column else nothing,
        "license": [license_of(text or "") or text for text in _texts(table.get("license", nothing))],
    }


def _need(found: Iterable[str], column: str, key: str, where: object) -> None:
    if column not in (names := list(found)):
        raise ValueError(f"{where}: no column {column!r}, it has {', '.join(names) or 'none'}; say which with {key}")


def _texts(values: Iterable[Any]) -> list[str | None]:
    """Return numbers as text, and None for blanks."""
    return [None if value is None or not str(value).strip() else str(value) for value in values]


def _check_names(names: Sequence[str], column: str, where: Path, inside: bool) -> None:
    """Raise ValueError for a file name that is blank or holds a null character, or with `inside` leaves the folder."""
    unfit = [
        f"{name!r} (row {row})"
        for row, name in enumerate(names, 1)
        if not name.strip() or "\0" in name or (inside and (name.startswith("/") or ".." in name.split("/")))
    ]
    if unfit:
        which = f"of files inside {where.parent}" if inside else "of files"
        raise ValueError(f"{where}: {column} must hold the names {which}, but has {list_some(unfit)}")


def _ids(places: Sequence[str], where: Path) -> list[str]:
    """Make ids of paths: without extension, and - for /; .dcm is an extension, the last number of a UID is none."""
    ids = []
    for place in places:
        stem, extension = os.path.splitext(place)
        ids.append((place if extension[1:].isdigit() else stem).replace("../", "").replace("/", "-"))
    if twice := [image_id for image_id, n in Counter(ids).items() if n > 1]:
        said = "file names that are the same but for extension and slashes make no image_id"
        raise ValueError(f"{where}: {said}: {list_some(twice)}; keep one of each, or add a column image_id")
    return ids


def _unique(found: Iterable[tuple[str | None, Any]]) -> dict[str, Any]:
    """Return {split: thing} of the things whose split is known. Raises ValueError for two things of one split."""
    things: dict[str, Any] = {}
    for split, thing in found:
        if split in things:
            raise ValueError(f"two of one kind, {things[split]} and {thing}: keep one")
        if split is not None:
            things[split] = thing
    return things


def _told(table: Table, where: Path) -> dict[str, Table]:
    return {split: _taken(table, numbers) for split, numbers in rows_by_split(table["told"], where).items()}


def _taken(table: Table, numbers: Sequence[int]) -> Table:
    return {name: [values[i] for i in numbers] for name, values in table.items()}
