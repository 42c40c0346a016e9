"""Escaped Markdown for captions, names and recipe values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medcap.logs import visible


def escape(value: object) -> str:
    """Return text on one line, with all Markdown and HTML syntax escaped.

    Entities are used because CommonMark (6.2) treats them as text everywhere, table cells included.
    """
    line = visible(" ".join(str(value).split()))
    return re.sub(r"[&<>|`*\[\]\\~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)", lambda match: f"&#{ord(match[0])};", line)


def code(value: object) -> str:
    """Return a recipe value as inline code that is valid in a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not text.strip() or visible(text) != text or re.search(r"[`\n]|\\\||\\$", text):  # not possible in a code span
        return f"<code>{escape(json.dumps(text, ensure_ascii=False))}</code>"
    return f"`{text}`".replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of escaped cells; all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the columns with a value in any row; "" without rows."""
    measured = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [[cell(row.get(key)) for key in measured] for row in rows]
    return table([columns[key] for key in measured], cells) if cells else ""


def cell(value: object) -> str:
    """Return a table cell: floats with 4 decimals, integers with commas, None empty, other values escaped."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else escape(value)
