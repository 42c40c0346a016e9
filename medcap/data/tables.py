"""Tables of texts: CSV, JSON Lines and parquet files read strictly, and the ids in them checked."""

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

_UNFIT_ID = re.compile(r"[/\\]|::|^\s*$")  # an id is part of file names, and of zip:// URLs whose parts :: separates


def read_table(path: str | os.PathLike[str], needed: Sequence[str]) -> dict[str, list[str]]:
    """Return {column: cells} of a CSV with a header, all columns of it, cells uncleaned and in file order.

    UTF-8 with or without a BOM, any line ends; blanks around the header's names and blank lines do not count, cells
    that a row lacks at its end are blank. Raises ValueError with file, line and cause: a column of `needed` that is
    not there, or any twice, a row with surplus cells (a caption whose comma was not quoted), a broken quote, a cell of
    more than `csv.field_size_limit()` characters (131,072), another encoding.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        check_columns(header, needed, path)
        rows = []
        for row in reader:
            if len(row) > len(header):
                raise csv.Error("more cells than the header has; quote the captions")
            if row:
                rows.append(row + [""] * (len(header) - len(row)))
    except csv.Error as error:
        raise ValueError(f"{path}: not a sound CSV: {error} (line {reader.line_num})") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _text(path: str | os.PathLike[str]) -> str:
    data = Path(path).read_bytes()  # all of it: a decoder that reads by blocks counts bytes from the block's start
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def read_jsonl(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return {key: values} of a file with one JSON object a line (jsonlines.org), in file order; None where one lacks.

    UTF-8 with or without a BOM; blank lines do not count. Raises ValueError with file, line and cause: no JSON, no
    object, a text of more than `csv.field_size_limit()` characters (131,072), another encoding.
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
            except (ValueError, RecursionError) as error:  # beside JSONDecodeError: 5,000 digits, 5,000 brackets
                cause = getattr(error, "msg", error)
                raise ValueError(f"{path}: not JSON, one object a line: {cause} (line {number})") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f'{path}: not an object {{"key": value, ...}} but {type(row).__name__} (line {number})'
                )
            longest = max((len(value) for value in row.values() if isinstance(value, str)), default=0)
            if longest > csv.field_size_limit():
                raise ValueError(
                    f"{path}: {longest} characters in one text; at most {csv.field_size_limit()} are read "
                    f"(line {number})"
                )
            if text:
                yield row


def read_parquet(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return {column: values} of a parquet file; raises ValueError for a file that is damaged."""
    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowInvalid, OSError) as error:  # OSError: what is damaged behind the first bytes
        raise ValueError(f"{path}: not a sound parquet file: {error_line(error)}") from error


def read_column(path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """Return {id: cell} of a CSV with the columns `ID` and `column`, uncleaned and in file order.

    Raises ValueError as `read_table`, and for an id that is blank, holds a slash, or occurs twice.
    """
    table = read_table(path, ["ID", column])
    check_ids(table["ID"], path)
    return dict(zip(table["ID"], table[column], strict=True))


def check_columns(found: Sequence[str], needed: Sequence[str], where: object) -> None:
    """Raise ValueError, naming `where`, unless all `needed` columns are among the `found`, and no named one twice."""
    if twice := [name for name, n in Counter(found).items() if n > 1 and name]:
        raise ValueError(f"{where}: columns that occur more than once: {list_some(twice)}")
    if not set(needed) <= set(found):
        raise ValueError(f"{where}: needs the columns {', '.join(needed)}, has {', '.join(found) or 'none'}")


def check_ids(ids: Sequence[str], where: object) -> None:
    """Raise ValueError, naming `where` and the first five, for ids that cannot name files or occur twice."""
    unfit = [image_id or "(blank)" for image_id in ids if _UNFIT_ID.search(image_id or "")]
    if unfit:
        raise ValueError(f"{where}: ids that are blank or hold a slash or '::' cannot name files: {list_some(unfit)}")
    twice = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"{where}: ids that occur more than once: {list_some(twice)}")


def list_some(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
