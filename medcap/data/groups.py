"""Values of a table as text: missing values, and patients that are spelled in several ways."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from medcap.data.tables import list_some

logger = logging.getLogger(__name__)

_MISSING = ("nan", "<na>", "nat", "none", "null")  # what programs write for a missing value
_WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0+")  # pandas stores whole numbers as floats if one is missing


def texts(values: Iterable[Any], name: str, source: object) -> list[str | None]:
    """Return the values of column `name` as text: numbers are written out, NaN, blanks and "nan" are None.

    Raises:
        ValueError: A value is a list, an object, bytes or true or false. The message names `source` and the row.
    """
    result: list[str | None] = []
    for row, value in enumerate(values, 1):
        if isinstance(value, (list, dict, bytes, bool)):
            kind = {list: "a list", dict: "an object", bytes: "bytes", bool: str(value).lower()}[type(value)]
            raise ValueError(f"{source}: {name} must be one text; row {row} has {kind}")
        text = "" if value is None else str(value)
        is_missing = not text.strip() or text.strip().casefold() in _MISSING
        result.append(None if is_missing or (isinstance(value, float) and text in ("inf", "-inf")) else text)
    return result


def unify_groups(names: Sequence[str | None], source: object) -> list[str | None]:
    """Return the names of patients or articles with one spelling for each; a warning counts those with several.

    White space, Unicode form, case, leading zeros of numbers, and `.0` after whole numbers do not distinguish two
    patients: a patient in two splits would be a leak, two patients read as one are not.
    """
    spellings: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if name is not None:
            spellings.setdefault(_key(name), []).append(name)
    if several := [names for names in spellings.values() if len(names) > 1]:
        example = " and ".join(map(repr, sorted(several[0])[:3]))
        logger.warning(
            "%s: patients or articles with several spellings, each read as one: %d, such as %s",
            source, len(several), example,
        )  # fmt: skip
    unified = {key: min(map(_tidy, names)) for key, names in spellings.items()}
    return [None if name is None else unified[_key(name)] for name in names]


def check_moved(values: Sequence[str | None], column: str, source: object) -> None:
    """Raise ValueError for cells of a CSV that seem to be the end of a caption with a comma that is not quoted.

    These begin with a space, which other cells of the column do not, and occur nowhere without it.
    """
    names = {value for value in values if value}
    begin_with_space = {name for name in names if name.startswith(" ")}
    if begin_with_space == names:  # a file with a space after every comma
        return
    moved = [name for name in begin_with_space if name.strip() not in {other.rstrip() for other in names}]
    if moved:
        rows = [f"{value!r} (row {row})" for row, value in enumerate(values, 1) if value in moved]
        raise ValueError(
            f"{source}: {column} begins with a space: {list_some(rows)}; if it is the end of a caption, quote the "
            "caption, else remove the space"
        )


def _tidy(name: str) -> str:
    text = unicodedata.normalize("NFC", " ".join(name.replace("\ufeff", " ").replace("\u200b", " ").split()))
    return whole[1] if (whole := _WHOLE_FLOAT.fullmatch(text)) else text


def _key(name: str) -> str:
    key = unicodedata.normalize("NFKC", _tidy(name)).casefold()
    return key.lstrip("0") or "0" if key.isdigit() else key
