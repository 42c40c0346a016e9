"""Markdown that nothing in a caption, a name or a recipe can break."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def escape(value: object) -> str:
    """Write any text on one line so that neither Markdown nor HTML sees anything in it but letters.

    Entities, because CommonMark (6.2) takes them for text wherever they stand, in the cell of a table too.
    """
    line = " ".join(str(value).split())
    return re.sub(r"[&<>|`*\[\]\\~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)", lambda found: f"&#{ord(found[0])};", line)


def code(value: object) -> str:
    """Write a value of a recipe as inline code that may stand in a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not text.strip() or re.search(r"[`\r\n]|\\\||\\$", text):  # no code span can hold these
        return f"<code>{escape(json.dumps(text, ensure_ascii=False))}</code>"
    return f"`{text}`".replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """A Markdown table of cells that are escaped already; `align` is for all columns but the first."""
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the columns that were measured in any row; "" without rows."""
    measured = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [[cell(row.get(key)) for key in measured] for row in rows]
    return table([columns[key] for key in measured], cells) if cells else ""


def cell(value: object) -> str:
    """A number or a text in the cell of a table; None is blank."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else escape("" if value is None else value)
