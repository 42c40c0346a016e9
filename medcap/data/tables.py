"""Read tables of texts strictly: CSV, JSON Lines and parquet files, and check ids."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from medcap.data.csv_records import read_records
from medcap.logs import error_line

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may contain one of the two that make one character
_INVALID_ID = re.compile(r"[/\\]|::|^\s*$")  # ids are part of file names and of zip:// URLs, which :: separates


def read_table(path: str | os.PathLike[str], needed: Sequence[str]) -> dict[str, list[str]]:
    """Return {column: cells} of all columns of a CSV with a header; cells are not changed.

    The encoding is UTF-8 with or without BOM. Blank lines are skipped. The `needed` columns are found in any case and
    returned as spelled in `needed`.

    Raises:
        ValueError: A column of `needed` is missing, a column is repeated, a row has more or fewer cells than the
            header (a comma that is not quoted), a quote is not closed or closed in a later row, a cell has more than
            `csv.field_size_limit()` (131,072) characters, or the text is not UTF-8 or has a null character. The
            message names file and line.
    """
    header, rows = read_records(_text(path), path)
    _check_columns(header, needed, path)
    spelled = {find_column(header, name, path): name for name in needed}
    return {spelled.get(name, name): [row[i] for row in rows] for i, name in enumerate(header)}


def _text(path: str | os.PathLike[str]) -> str:
    data = Path(path).read_bytes()  # at once: a block decoder would count bytes from the start of its block
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(error.object)  # without the BOM
        line = data.count(b"\n", 0, start) + 1
        raise ValueError(
            f"{path}: not in UTF-8 ({error.reason} at byte {start}, line {line}); save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: a null character (line {line}); save it as UTF-8 text")
    return text


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
            if found := _SURROGATE.search(json.dumps(row, ensure_ascii=False)):
                text = found[0].encode("unicode_escape").decode()
                raise ValueError(f"{path}: {text} is half a character, which is no text; replace it (line {number})")
            if text:
                yield row


def read_parquet(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return {column: values} of a parquet file. Raises ValueError for an invalid file."""
    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowInvalid, OSError) as error:  # OSError: invalid after the first bytes
        raise ValueError(f"{path}: invalid parquet file: {error_line(error)}") from error
    return table_columns(table, path)


def table_columns(table: pyarrow.Table, source: object) -> dict[str, list[Any]]:
    """Return {column: values}. Raises ValueError, with `source`, column and row, for a text that is not in UTF-8."""
    try:
        return dict(table.to_pydict())
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: {_undecodable(table)} is not in UTF-8 ({error.reason})") from error


def _undecodable(table: pyarrow.Table) -> str:
    """Return where the first text is that cannot be decoded."""
    for number in range(table.num_columns):
        row, name = 0, ""
        try:
            name = table.schema.field(number).name
            for value in table.column(number):
                row += 1
                value.as_py()
        except UnicodeDecodeError:
            return f"{name} of row {row}" if name else f"the name of column {number + 1}"
    return "a text"


def read_column(path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """Return {id: cell} of a CSV with the columns `ID` and `column`. Raises as `read_table` and `check_ids`."""
    table = read_table(path, list(dict.fromkeys(["ID", column])))  # `column` may be ID
    check_ids(table["ID"], path)
    return dict(zip(table["ID"], table[column], strict=True))


def find_column(columns: Iterable[str], name: str, source: object) -> str | None:
    """Return the column `name` as it is spelled in `columns`, in any case; None if there is none.

    Raises ValueError for two columns that differ only in case.
    """
    found = [column for column in columns if column.strip().casefold() == name.strip().casefold()]
    if len(found) > 1:
        raise ValueError(f"{source}: the columns {' and '.join(found)} differ only in case; remove or rename one")
    return found[0] if found else None


def _check_columns(columns: Sequence[str], needed: Sequence[str], source: object) -> None:
    """Raise ValueError if a `needed` column is missing or a named column is repeated."""
    if repeated := [name for name, n in Counter(columns).items() if n > 1 and name]:
        raise ValueError(f"{source}: repeated columns: {list_some(repeated)}")
    if not all(find_column(columns, name, source) for name in needed):
        noun = "column" if len(needed) == 1 else "columns"
        raise ValueError(f"{source}: needs the {noun} {', '.join(needed)}, has {', '.join(columns) or 'none'}")


def check_ids(ids: Sequence[str], source: object) -> None:
    """Raise ValueError for ids that are repeated, or cannot be file names; the message starts with `source`."""
    if invalid := [image_id or "(blank)" for image_id in ids if _INVALID_ID.search(image_id or "")]:
        raise ValueError(f"{source}: ids must not be blank or contain a slash or '::': {list_some(invalid)}")
    if repeated := [image_id for image_id, n in Counter(ids).items() if n > 1]:
        raise ValueError(f"{source}: repeated ids: {list_some(repeated)}")


def list_some(names: Sequence[str]) -> str:
    """Return the first five names, on one line, and the number of the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name.replace("\r", "\\r").replace("\n", "\\n") for name in names[:5]) + more
