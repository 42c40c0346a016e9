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
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    NamedSplit,
    config,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)
from datasets.exceptions import DatasetBuildError
from datasets.table import CastError
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from medcap import hub
from medcap.data.concepts import split_cuis
from medcap.data.groups import check_moved, texts, unify_groups
from medcap.data.layout import SPLIT_NAMES, DataLayout, complete_splits, rows_by_split, split_of
from medcap.data.licenses import license_of
from medcap.data.paths import absolute, find_images
from medcap.data.selection import FEATURES
from medcap.data.tables import find_column, list_some, read_jsonl, read_parquet, read_table, table_columns
from medcap.logs import error_line
from medcap.retries import MAX_ATTEMPTS

LICENSES = ("license", "licence")  # names of the column
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

    Without other splits than train, the column `split` names the split.

    Raises:
        FileNotFoundError: There is no such data.
        ValueError: It cannot be read, or has no split with a known name.
    """
    data = _load_dataset(name)
    names = _by_split((split_of(split), split) for split in data)
    if not names:
        raise ValueError(f"{name}: its splits are {', '.join(data)}; at least one must be named {SPLIT_NAMES}")
    is_split = set(names) != {"train"}
    tables = {split: _hub_texts(data[names[split]], split, layout, name, is_split) for split in names}
    _unify_groups(tables, name)
    splits = {split: _hub_rows(data[names[split]], table, split, layout, name) for split, table in tables.items()}
    if not is_split:
        numbers = rows_by_split(tables["train"]["split"], f"{name}, split train")
        splits = {split: _select_rows(splits["train"], rows) for split, rows in numbers.items()}
    splits = complete_splits(splits, _select_rows, layout, name)
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
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else ():
        with suppress(pyarrow.ArrowInvalid, OSError):  # reported by `load_dataset`
            if not pyarrow.parquet.read_metadata(file).num_rows:
                raise ValueError(f"{file}: there is no row")
    try:
        return load_dataset(name) if path.exists() else _download(name)
    except (DatasetBuildError, ValueError) as error:  # ValueError: from pyarrow, without the name
        if isinstance(error.__cause__, TypeError | CastError):
            columns = "its files have different columns, or a column of different types; save them alike"
            raise ValueError(f"{name}: {columns} ({error_line(error.__cause__)})") from error
        raise ValueError(f"{name}: {error_line(error.__cause__ or error)}") from error
    except OSError as error:
        if not path.exists():
            raise FileNotFoundError(f"{advice} ({hub.load_error('not a local path', error)})") from error
        if isinstance(error, FileNotFoundError):  # others are from pyarrow, without the name
            raise FileNotFoundError(f"{advice} ({error_line(error)})") from error
        raise ValueError(f"{name}: {error_line(error.__cause__ or error)}") from error


def _download(name: str) -> DatasetDict:
    """Return a data set on the Hub, or its copy in the cache if the Hub cannot be reached."""
    is_cached = (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()
    try:  # first, because load_dataset waits silently for minutes without a connection
        with hub.load_errors(name):
            hub.retry(lambda: HfApi().dataset_info(name), 1 if is_cached else MAX_ATTEMPTS)
    except OSError:
        if not is_cached:
            raise
    return hub.retry(lambda: load_dataset(name))


def _hub_texts(rows: Dataset, split: str, layout: DataLayout, name: str, is_split: bool) -> Table:
    """Return the columns of `FEATURES` without the image, and "split", which is blank if there is none."""
    source = f"{name}, split {split}"
    _require_column(rows.column_names, layout.image_column or "image", "image_column", source)
    if not len(rows):
        raise ValueError(f"{source}: there is no row")
    needed = ("image_id", "cuis", "cui", *LICENSES, "split", layout.caption_column or "caption", layout.group_column)
    found = {find_column(rows.column_names, column, source) for column in needed if column}
    labels = {column for column in found if column and isinstance(rows.features[column], ClassLabel)}
    text_columns = rows.select_columns([column for column in rows.column_names if column in found])
    table = table_columns(text_columns.with_format("arrow")[:], source)
    for column in labels:
        table[column] = [None if value is None else rows.features[column].int2str(value) for value in table[column]]
    ids = _column(table, source, "image_id")
    return {
        "image_id": [f"{split}-{row:06d}" for row in range(len(rows))]
        if ids is None
        else texts(ids, "image_id", source),
        **_descriptions(table, len(rows), layout, source),
        "split": _split_column(table, len(rows), split if is_split else "", source),
    }


def _hub_rows(rows: Dataset, table: Table, split: str, layout: DataLayout, name: str) -> Dataset:
    """Return rows with the columns of `FEATURES`; the texts are rewritten, the images are not."""
    image = _require_column(rows.column_names, layout.image_column or "image", "image_column", name)
    try:
        result = rows.select_columns(image).rename_columns({image: "image"}).cast_column("image", Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{name}, split {split}: the column {image} has no images but {rows.features[image]}; set image_column"
        ) from error
    files = _named_files(result)
    if any(files):
        found = find_images(
            files, Path(name), _hub_roots(name), layout.allow_outside, f"{name}, split {split}: {image}"
        )
        entries = result["image"][:]
        images = [
            (path and {"bytes": None, "path": path}) if file else entry
            for file, path, entry in zip(files, found, entries, strict=True)
        ]
        result = Dataset.from_dict({"image": images}, Features(image=FEATURES["image"]), split=rows.split)
    for column in FEATURES:
        if column != "image":
            result = result.add_column(column, table[column], feature=FEATURES[column])
    return result.select_columns(list(FEATURES))


def _named_files(rows: Dataset) -> list[str | None]:
    """Return the path of each image that is not stored in the data set but names a file, else None."""
    files: list[str | None] = []
    for batch in rows.with_format("arrow").iter(1000):
        data, path = (compute.struct_field(batch["image"], name) for name in ("bytes", "path"))
        files += compute.if_else(compute.is_null(data), path, None).to_pylist()
    return files


def _hub_roots(name: str) -> list[Path]:
    """Return the folders that may contain the images: the folder itself, or where `datasets` downloads them."""
    if os.path.isdir(name):
        return [Path(name), Path(config.DOWNLOADED_DATASETS_PATH)]
    cached = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    return [cached, Path(config.DOWNLOADED_DATASETS_PATH)]


def _read_tables(tables: Mapping[str, Path], root: Path, layout: DataLayout, inside: bool) -> dict[str, Dataset]:
    splits = {split: _read_rows(path, split, root, layout, inside) for split, path in tables.items()}
    _unify_groups(splits, root)
    if "" in splits:
        rows = splits[""]
        splits = {split: _select(rows, numbers) for split, numbers in rows_by_split(rows["split"], tables[""]).items()}
    return {
        split: Dataset.from_dict({name: table[name] for name in FEATURES}, FEATURES, split=NamedSplit(split))
        for split, table in complete_splits(splits, _select, layout, str(root)).items()
    }


def _unify_groups(splits: dict[str, Table], source: object) -> None:
    """Spell each patient in one way in all splits."""
    unified = iter(unify_groups([name for table in splits.values() for name in table["group"]], source))
    for table in splits.values():
        table["group"] = [next(unified) for _ in table["group"]]


def _read_rows(path: Path, split: str, root: Path, layout: DataLayout, inside: bool) -> Table:
    """Return the columns of `FEATURES`, and "split" with the name of each row's split, blank if there is none."""
    readers = {".parquet": read_parquet, ".jsonl": read_jsonl}
    table: Table = readers[path.suffix](path) if path.suffix in readers else dict(read_table(path, []))
    column = _require_column(table, layout.image_column or "file_name", "image_column", path)
    names = [(name or "").replace("\\", "/") for name in texts(table[column], column, path)]  # also from Windows
    if not names:
        raise ValueError(f"{path}: there is no row")
    images = find_images(names, path.parent, [root], layout.allow_outside, f"{path}: {column}")
    relative = [os.path.relpath(absolute(name, path.parent), root) for name in names]
    ids = _column(table, path, "image_id")
    rows = {
        "image_id": _ids(relative, path) if ids is None else texts(ids, "image_id", path),
        "image": images,
        **_descriptions(table, len(names), layout, path),
        "split": _split_column(table, len(names), split, path),
    }
    folders = [image.partition("/")[0] for image in relative]
    if inside and not any(rows["split"]) and any(split_of(folder) for folder in folders):
        rows["split"] = folders
    return rows


def _split_column(table: Table, n: int, expected: str, source: object) -> list[str]:
    """Return the column `split`, blank without one. Raises ValueError for another split than `expected`, if any."""
    names = [name or "" for name in texts(_column(table, source, "split") or [None] * n, "split", source)]
    others = [name for name in dict.fromkeys(names) if expected and name and split_of(name) != expected]
    if others:
        raise ValueError(
            f"{source}: its rows are those of split {expected}, but its column split has {list_some(others)}; "
            "remove the column or move these rows"
        )
    return names


def _descriptions(table: Table, n: int, layout: DataLayout, source: object) -> Table:
    """Return caption, concepts, group and license of the `n` rows of a table."""
    nothing: list[Any] = [None] * n
    caption = _require_column(table, layout.caption_column or "caption", "caption_column", source)
    groups = nothing
    if layout.group_column:
        column = _require_column(table, layout.group_column, "group_column", source)
        groups = texts(table[column], column, source)
        check_moved(groups, column, source)
    return {
        "caption": texts(table[caption], caption, source),
        "cuis": [split_cuis(value) for value in _column(table, source, "cuis", "cui") or nothing],
        "manual_cuis": [[]] * n,
        "group": groups,
        "license": [
            license_of(text or "") or text
            for text in texts(_column(table, source, *LICENSES) or nothing, "license", source)
        ],
    }


def _column(table: Table, source: object, *names: str) -> list[Any] | None:
    """Return the column with the first of the `names` that exists, in any case."""
    found = (find_column(table, name, source) for name in names)
    column = next(filter(None, found), None)
    return None if column is None else table[column]


def _require_column(columns: Iterable[str], name: str, key: str, source: object) -> str:
    """Return the column `name` as it is spelled in `columns`."""
    columns = list(columns)
    if (found := find_column(columns, name, source)) is None:
        raise ValueError(
            f"{source}: no column {name!r}, it has {', '.join(columns) or 'none'}; set {key}, or name the columns in "
            "the first line"
        )
    return found


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


def _select_rows(rows: Dataset, numbers: Sequence[int]) -> Dataset:
    return flattened(rows.select(numbers))


def flattened(rows: Dataset) -> Dataset:
    """Return selected rows as a table of their own, without the bar of datasets, which is for other work."""
    disable_progress_bars()
    try:
        return rows.flatten_indices()
    finally:
        enable_progress_bars()
