"""Read data sets that are not ROCOv2: an image folder with a metadata file, CSV files, or a data set on the Hub.

The readers return {split: rows} with the columns of `medcap.data.selection.FEATURES`: unchanged texts, None for a
missing image; no image is opened. The columns `image_id`, `cuis` and `license` are optional. Errors in a table are
ValueErrors that name file and row.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, NamedSplit, load_dataset
from datasets.exceptions import DatasetBuildError

from medcap.data.concepts import split_cuis
from medcap.data.layout import SPLIT_NAMES, DataLayout, complete_splits, rows_by_split, split_of
from medcap.data.licenses import license_of
from medcap.data.selection import FEATURES
from medcap.data.tables import list_some, read_jsonl, read_parquet, read_table
from medcap.logs import error_line

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
Table = dict[str, list[Any]]


def find_metadata(folder: Path) -> dict[str, Path]:
    """Return {"": metadata file} of an image folder, or {split: file} if each split has its own folder and file.

    This is Hugging Face's imagefolder convention. Raises ValueError for two files of one split.
    """
    if paths := [folder / name for name in METADATA if (folder / name).is_file()]:
        return _by_split([("", path) for path in paths])
    subfolders = sorted(path for path in folder.iterdir() if split_of(path.name))
    paths = [subfolder / name for subfolder in subfolders for name in METADATA]
    return _by_split([(split_of(path.parent.name), path) for path in paths if path.is_file()])


def find_csvs(path: Path) -> dict[str, Path]:
    """Return {"": path} for a CSV file, or {split: file} of the train.csv, valid.csv and test.csv in a folder."""
    if path.is_file():
        return {"": path}
    return _by_split([(split_of(file.stem), file) for file in sorted(path.glob("*.csv"))])


def read_imagefolder(path: str | os.PathLike[str], layout: DataLayout) -> dict[str, Dataset]:
    """Return the raw rows of an image folder; file names are relative to the metadata file (see `find_metadata`).

    With one metadata file, the column `split`, or else the first folder of each file name, names the split.
    """
    folder = Path(path)
    tables = find_metadata(folder)
    if not tables:
        raise ValueError(f"no {', '.join(METADATA)} in {folder} or in a folder train/, validation/ or test/ in it")
    return _read_tables(tables, folder, layout, inside=True)


def read_csv(path: str | os.PathLike[str], layout: DataLayout) -> dict[str, Dataset]:
    """Return the raw rows of a CSV file, or of one per split; image paths are absolute or relative to the file.

    With one CSV file, the column `split` names the split.
    """
    path = Path(path)
    tables = find_csvs(path)
    if not tables:
        raise ValueError(f"no CSV at {path}: name a file, or a folder with train.csv, valid.csv and test.csv")
    return _read_tables(tables, path if path.is_dir() else path.parent, layout, inside=False)


def read_hub(name: str, layout: DataLayout) -> dict[str, Dataset]:
    """Return the raw rows of a data set on the Hub, or of a folder of parquet files.

    Raises:
        FileNotFoundError: There is no such data.
        ValueError: It cannot be read, or has no split with a known name.
    """
    data = _load_dataset(name)
    names = _by_split((split_of(split), split) for split in data)
    if not names:
        raise ValueError(f"{name}: its splits are {', '.join(data)}; at least one must be named {SPLIT_NAMES}")
    splits = {split: _hub_rows(data[names[split]], split, layout, name) for split in names}
    splits = complete_splits(splits, lambda rows, numbers: rows.select(numbers).flatten_indices(), layout, name)
    return {split: Dataset(rows.data, rows.info, NamedSplit(split)) for split, rows in splits.items()}


def _load_dataset(name: str) -> DatasetDict:
    advice = (
        f"no data at {name!r}: expected a folder with train_captions.csv (ROCOv2), metadata.csv or metadata.jsonl "
        "(imagefolder), train.csv or parquet files, a CSV file, or a data set NAMESPACE/NAME on the Hub; "
        "`medcap data phantom --out DIR` creates a synthetic data set"
    )
    path = Path(name)  # data/rocov2 is a wrong path, not a Hub id, where data/ exists
    if not (any(path.rglob("*.parquet")) if path.exists() else _HUB_ID.fullmatch(name) and not path.parent.is_dir()):
        raise FileNotFoundError(advice)
    try:
        return load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{advice} ({error_line(error)})") from error
    except (DatasetBuildError, ValueError) as error:  # ValueError: from pyarrow, without the name
        raise ValueError(f"{name}: {error_line(error.__cause__ or error)}") from error


def _hub_rows(rows: Dataset, split: str, layout: DataLayout, name: str) -> Dataset:
    """Return rows with the columns of `FEATURES`; the texts are rewritten, the images are not."""
    image, source = layout.image_column or "image", f"{name}, split {split}"
    _check_column(image, rows.column_names, "image_column", source)
    texts = {"image_id", "cuis", "cui", "license", layout.caption_column or "caption", layout.group_column}
    table = rows.select_columns([column for column in rows.column_names if column in texts]).to_dict()
    result = rows.select_columns(image).rename_columns({image: "image"}).cast_column("image", Image())
    ids = _texts(table["image_id"]) if "image_id" in table else [f"{split}-{row:06d}" for row in range(len(rows))]
    for column, values in {"image_id": ids, **_descriptions(table, len(rows), layout, source)}.items():
        result = result.add_column(column, values, feature=FEATURES[column])
    return result


def _read_tables(tables: Mapping[str, Path], root: Path, layout: DataLayout, inside: bool) -> dict[str, Dataset]:
    splits = {split: _read_rows(path, root, layout, inside) for split, path in tables.items()}
    if "" in splits:
        rows = splits[""]
        splits = {split: _select(rows, numbers) for split, numbers in rows_by_split(rows["split"], tables[""]).items()}
    return {
        split: Dataset.from_dict({name: table[name] for name in FEATURES}, FEATURES, split=NamedSplit(split))
        for split, table in complete_splits(splits, _select, layout, str(root)).items()
    }


def _read_rows(path: Path, root: Path, layout: DataLayout, inside: bool) -> Table:
    """Return the columns of `FEATURES`, and "split" with the name of each row's split, blank if there is none."""
    readers = {".parquet": read_parquet, ".jsonl": read_jsonl}
    table: Table = readers[path.suffix](path) if path.suffix in readers else dict(read_table(path, []))
    column = layout.image_column or "file_name"
    _check_column(column, table, "image_column", path)
    names = [str(name or "").replace("\\", "/") for name in table[column]]  # tables are also written on Windows
    _check_names(names, column, path, inside)
    paths = [os.path.abspath(path.parent / name) for name in names]
    relative = [os.path.relpath(image, root) for image in paths]
    folders = [image.partition("/")[0] for image in relative]
    if not (inside and any(split_of(folder) for folder in folders)):
        folders = [""] * len(names)
    return {
        "image_id": _texts(table["image_id"]) if "image_id" in table else _ids(relative, path),
        "image": [image if os.path.isfile(image) else None for image in paths],
        **_descriptions(table, len(names), layout, path),
        "split": [str(name or "") for name in table.get("split", folders)],
    }


def _descriptions(table: Table, n: int, layout: DataLayout, source: object) -> Table:
    """Return caption, concepts, group and license of the `n` rows of a table."""
    caption, nothing = layout.caption_column or "caption", [None] * n
    _check_column(caption, table, "caption_column", source)
    if lists := [row for row, text in enumerate(table[caption], 1) if isinstance(text, (list, dict))]:
        raise ValueError(f"{source}: {caption} must be one text; row {lists[0]} has a list or an object")
    if layout.group_column:
        _check_column(layout.group_column, table, "group_column", source)
    return {
        "caption": _texts(table[caption]),
        "cuis": [split_cuis(value) for value in table.get("cuis", table.get("cui", nothing))],
        "manual_cuis": [[]] * n,
        "group": _texts(table[layout.group_column]) if layout.group_column else nothing,
        "license": [license_of(text or "") or text for text in _texts(table.get("license", nothing))],
    }


def _check_column(column: str, columns: Iterable[str], key: str, source: object) -> None:
    if column not in (names := list(columns)):
        raise ValueError(f"{source}: no column {column!r}, it has {', '.join(names) or 'none'}; set {key}")


def _texts(values: Iterable[Any]) -> list[str | None]:
    """Return numbers as text, and None for blanks."""
    return [None if value is None or not str(value).strip() else str(value) for value in values]


def _check_names(names: Sequence[str], column: str, path: Path, inside: bool) -> None:
    """Raise ValueError for a name that is blank, contains a null character or, with `inside`, leaves the folder."""
    invalid = [
        f"{name!r} (row {row})"
        for row, name in enumerate(names, 1)
        if not name.strip() or "\0" in name or (inside and (name.startswith("/") or ".." in name.split("/")))
    ]
    if invalid:
        files = f"files inside {path.parent}" if inside else "files"
        raise ValueError(f"{path}: {column} must contain names of {files}, but has {list_some(invalid)}")


def _ids(paths: Sequence[str], source: Path) -> list[str]:
    """Return ids: paths without extension, with - for /. The last number of a DICOM UID is not an extension."""
    ids = []
    for path in paths:
        stem, extension = os.path.splitext(path)
        ids.append((path if extension[1:].isdigit() else stem).replace("../", "").replace("/", "-"))
    if repeated := [image_id for image_id, n in Counter(ids).items() if n > 1]:
        raise ValueError(
            f"{source}: file names that differ only in extension or slashes give the same image_id: "
            f"{list_some(repeated)}; rename them, or add a column image_id"
        )
    return ids


def _by_split(items: Iterable[tuple[str | None, Any]]) -> dict[str, Any]:
    """Return {split: item} of the items with a split. Raises ValueError for two items of one split."""
    result: dict[str, Any] = {}
    for split, item in items:
        if split in result:
            raise ValueError(f"two tables of one split, {result[split]} and {item}: remove one")
        if split is not None:
            result[split] = item
    return result


def _select(table: Table, numbers: Sequence[int]) -> Table:
    return {name: [values[i] for i in numbers] for name, values in table.items()}
