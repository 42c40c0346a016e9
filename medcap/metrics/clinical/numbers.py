"""Numbers with a unit in captions, converted to a base unit; units are in `medcap/data/lexicons/unit.csv`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from medcap.data.terms import read_rows

_MEASURES = ("mm", "mm2", "mL")  # lengths, areas and volumes may have a decimal comma
_SPELLED = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_UNITS = {
    spelling.strip().lower(): (row["unit"], float(row["factor"]))
    for row in read_rows("unit")
    for spelling in row["spellings"].split(";")
}
_UNIT = "|".join(re.escape(unit).replace(r"\ ", r"\s?") for unit in sorted(_UNITS, key=len, reverse=True))
# "1,200", "1, 200" and "4, 5" are one number (a comma with a space is the output of some tokenizers); in a list of
# numbers "and" or "or" follows
_DIGITS = r"\d{1,3}(?:, ?\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+|, \d{1,2}(?![\d.,])(?!,? (?:and|or) ))?"
_NUMBER = rf"(?:{_DIGITS}|\b(?:{'|'.join(_SPELLED)})\b)"
_JOIN = r"(?:\s?[x×*/–-]\s?|-?,?\s(?:by|to|and|or)\s|,\s(?=[\d.]+(?:, [\d.]+)*,? (?:and|or) \d))"
_QUANTITY = re.compile(
    rf"(?P<sign>(?<!\w)(?<!\d\s)[-−–])?(?<![\w.])(?P<run>{_NUMBER}(?:{_JOIN}{_NUMBER})*)"
    rf"\)?[\s-]?(?P<unit>{_UNIT})(?![a-z0-9²³/])",
    re.IGNORECASE,
)
_PARSED = re.compile(_NUMBER, re.IGNORECASE)
_CELSIUS = re.compile(r"\s?c(?!\w)", re.IGNORECASE)


def numbers_in(text: str) -> Iterator[str]:
    """Yield each number that has a unit, in the base unit: "2 x 3 cm" is "20 mm" and "30 mm"."""
    for match in _QUANTITY.finditer(text):
        spelling = re.sub(r"\s", " ", match["unit"].lower())
        unit, factor = _UNITS.get(spelling) or _UNITS[spelling.replace(" ", "")]
        if unit == "degrees" and _CELSIUS.match(text, match.end()):
            continue
        is_negative = match["sign"] and unit == "HU"  # before other units a dash is punctuation
        for number in _PARSED.findall(match["run"]):
            if ", " in number and unit not in _MEASURES:  # "figure 3, 24 hours"
                number = number.rpartition(" ")[2]
            yield f"{'-' if is_negative else ''}{round(_value(number) * factor, 4):g} {unit}"


def _value(number: str) -> float:
    """Parse 4.1, 4,1 or 4, 1 (decimal comma), 1,200 or 1, 200 (thousands), or a word."""
    if number.lower() in _SPELLED:
        return _SPELLED.index(number.lower()) + 1
    compact = number.replace(" ", "")
    is_thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", compact)
    return float(compact.replace(",", "" if is_thousands else "."))
