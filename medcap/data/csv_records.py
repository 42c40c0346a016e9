"""The records of a CSV text, checked for commas and quotes that move text into other cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

_DELIMITERS = {";": "semicolons", "\t": "tabs"}


def read_records(text: str, source: object) -> tuple[list[str], list[list[str]]]:
    """Return header and rows; each row has a cell for every column.

    Blank lines are skipped. Names of columns are stripped, cells are not changed.

    Raises:
        ValueError: The text is not such a table. The message names `source` and the line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    start = 1  # line of the record
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                if header:
                    _check_record(row, header)
                    rows.append(row)
                else:
                    header = _header(row)
            start = reader.line_num + 1
    except csv.Error as error:
        cause = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        raise ValueError(f"{source}: invalid CSV: {cause} ({_lines(start, reader.line_num)})") from error
    return header, rows


def _lines(first: int, last: int) -> str:
    return f"line {first}" if last <= first else f"lines {first} to {last}"


def _header(row: Sequence[str]) -> list[str]:
    for delimiter, name in _DELIMITERS.items():
        if len(row) == 1 and delimiter in row[0]:
            raise csv.Error(f"columns are separated by {name}; save it with commas")
    return [name.strip() for name in row]


def _check_record(row: Sequence[str], header: Sequence[str]) -> None:
    if len(row) != len(header):
        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        raise csv.Error(f"{cells} in a row, {len(header)} in the header; quote texts that contain a comma")
    if line := _swallowed(row):
        raise csv.Error(f"a quote was opened before the row {line!r}, which is now part of a text; close the quote")


def _swallowed(row: Sequence[str]) -> str | None:
    """Return a line inside a cell that looks like a row: one of its cells has the shape of a cell of this row."""
    for column, cell in enumerate(row):
        for line in cell.splitlines() if "\n" in cell or "\r" in cell else ():
            cells = line.split(",")
            complete = len(cells) == len(row)
            for other in range(min(len(cells), len(row))):
                if (other < column < len(cells) or (complete and other != column)) and _alike(
                    cells[other], row[other]
                ):
                    return line
    return None


def _alike(first: str, second: str) -> bool:
    """Return whether two cells have the same shape: names of files, or numbers of as many digits, but not words."""
    shapes = [re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", cell.strip())) for cell in (first, second)]
    if shapes[0] in ("", "a") or " " in shapes[0] or shapes[0] != shapes[1]:
        return False
    return shapes[0] != "0" or len(first.strip()) == len(second.strip())
