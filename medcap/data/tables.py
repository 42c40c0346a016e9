"""Read tables of texts strictly: CSV, JSON Lines and parquet files, and check ids."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from medcap.logs import error_line

_INVALID_ID = re.compile(r"[/\\]|::|^\s*$")  # ids are part of file names and of zip:// URLs, which :: separates


def read_table(path: str | os.PathLike[str], needed: Sequence[str]) -> dict[str, list[str]]:
    """Return {column: cells} of all columns of a CSV with a header; cells are not changed.

    The encoding is UTF-8 with or without BOM. Blank lines are skipped; missing cells at the end of a row are blank.

    Raises:
        ValueError: A column of `needed` is missing, a column is repeated, a row has too many cells (a comma that is
            not quoted), a quote is not closed, a cell has more than `csv.field_size_limit()` (131,072) characters, or
            the encoding is not UTF-8. The message names file and line.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, needed, path)
        rows = []
        for row in reader:
            if len(row) > len(header):
                raise csv.Error("more cells than the header; quote the captions")
            if row:
                rows.append(row + [""] * (len(header) - len(row)))
    except csv.Error as error:
        raise ValueError(f"{path}: invalid CSV: {error} (line {reader.line_num})") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _text(path: str | os.PathLike[str]) -> str:
    data = Path(path).read_bytes()  # at once: a block decoder would count bytes from the start of its block
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def read_jsonl(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return {key: values} of a file with one JSON object per line (jsonlines.org); missing values are None.

    Blank lines are skipped.

    Raises:
        ValueError: A line is not a JSON object, a text has more than `csv.field_size_limit()` (131,072) characters, or
            the encoding is not UTF-8. The message names file and line.
    """
    rows = list(_json_objects(path))
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _json_objects(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").strip()
                row = json.loads(text) if text else {}
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not in UTF-8 ({error.reason}, line {number}); save it as UTF-8") from error
            except (ValueError, RecursionError) as error:  # also for 5,000 digits or brackets
                cause = getattr(error, "msg", error)
                raise ValueError(f"{path}: not JSON, one object a line: {cause} (line {number})") from error
            if not isinstance(row, dict):
                raise ValueError(f'{path}: not an object {{"key": value}} but {type(row).__name__} (line {number})')
            longest = max((len(value) for value in row.values() if isinstance(value, str)), default=0)
            if longest > csv.field_size_limit():
                limit = csv.field_size_limit()
                raise ValueError(f"{path}: {longest} characters in one text; at most {limit} (line {number})")
            if text:
                yield row


def read_parquet(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return {column: values} of a parquet file. Raises ValueError for an invalid file."""
    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowInvalid, OSError) as error:  # OSError: invalid after the first bytes
        raise ValueError(f"{path}: invalid parquet file: {error_line(error)}") from error


def read_column(path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """Return {id: cell} of a CSV with the columns `ID` and `column`. Raises as `read_table` and `check_ids`."""
    table = read_table(path, ["ID", column])
    check_ids(table["ID"], path)
    return dict(zip(table["ID"], table[column], strict=True))


def _check_columns(columns: Sequence[str], needed: Sequence[str], source: object) -> None:
    """Raise ValueError if a `needed` column is missing or a named column is repeated."""
    if repeated := [name for name, n in Counter(columns).items() if n > 1 and name]:
        raise ValueError(f"{source}: repeated columns: {list_some(repeated)}")
    if not set(needed) <= set(columns):
        raise ValueError(f"{source}: needs the columns {', '.join(needed)}, has {', '.join(columns) or 'none'}")


def check_ids(ids: Sequence[str], source: object) -> None:
    """Raise ValueError for ids that are repeated, or cannot be file names; the message starts with `source`."""
    if invalid := [image_id or "(blank)" for image_id in ids if _INVALID_ID.search(image_id or "")]:
        raise ValueError(f"{source}: ids must not be blank or contain a slash or '::': {list_some(invalid)}")
    if repeated := [image_id for image_id, n in Counter(ids).items() if n > 1]:
        raise ValueError(f"{source}: repeated ids: {list_some(repeated)}")


def list_some(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
