"""License and source of each image, from `license_information.csv` of ROCOv2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcap.data.tables import check_ids, read_table

_GAP = r"[\s/_\u2010-\u2015-]*"
_CC = re.compile(rf"\bCC{_GAP}(0(?!\d)|BY(?:{_GAP}(?:NC|ND|SA))*)(?![a-z])", re.IGNORECASE)
_LONG_NAMES = {  # a missed one would be dangerous: CC BY-NonCommercial is not CC BY
    re.compile(rf"\b{name}", re.IGNORECASE): short
    for name, short in {
        r"creative[\s-]+commons": "CC", "attribution": "BY", r"non[\s-]*commercial": "NC",
        r"no[\s-]*deriv[a-z]*": "ND", r"share[\s-]*alike": "SA",
    }.items()
}  # fmt: skip
_PUBLIC_DOMAIN = re.compile(r"\bpublic domain\b", re.IGNORECASE)
_SUBJECT = re.compile(r"\b(patient|case)\s+([\w.-]*\d[\w.-]*)", re.IGNORECASE)
_COMMERCIAL = ("CC0", "CC BY", "CC BY-SA", "public domain")


@dataclass(frozen=True)
class Source:
    """The source of an image; None for what is not known.

    Attributes:
        license: Such as "CC BY-NC-SA".
        group: The article's PMCID, else the patient or case. Images of one group belong in one split.
    """

    license: str | None = None
    group: str | None = None


def read_sources(folder: Path) -> dict[str, Source]:
    """Return {image_id: Source} of all splits from `license_information.csv`; empty if there is no such file.

    The column Attribution contains the license and, if PMCID is blank, may contain the group as "patient 12" or
    "case 12". Raises as `read_column`.
    """
    path = folder / "license_information.csv"
    if not path.is_file():
        return {}
    table = read_table(path, ["ID", "PMCID", "Attribution"])
    check_ids(table["ID"], path)
    return {
        image_id: Source(license_of(attribution), pmcid.strip() or _subject(attribution))
        for image_id, pmcid, attribution in zip(table["ID"], table["PMCID"], table["Attribution"], strict=True)
    }


def license_of(attribution: str) -> str | None:
    """Return the Creative Commons license in a text without version ("CC BY-NC-ND", "CC0"), "public domain" or None.

    Long names are recognized ("Creative Commons Attribution-NonCommercial 4.0").
    """
    for name, short in _LONG_NAMES.items():
        attribution = name.sub(short, attribution)
    if found := _CC.search(attribution):
        parts = re.findall(r"0|BY|NC|ND|SA", found[1].upper())
        return "CC0" if parts == ["0"] else "CC " + "-".join(parts)
    return "public domain" if _PUBLIC_DOMAIN.search(attribution) else None


def allows_commercial_use(license_name: str | None) -> bool:
    """Return whether a license is known to allow commercial use of derived works: no NC, no ND."""
    return license_name in _COMMERCIAL


def _subject(attribution: str) -> str | None:
    found = _SUBJECT.search(attribution)
    return f"{found[1].lower()} {found[2].rstrip('.-')}" if found else None


def groups_in_several(groups: dict[str, Sequence[str | None]]) -> dict[str, list[str]]:
    """Return {group: splits} of the groups in more than one split; `groups` is {split: groups of its rows}."""
    splits: dict[str, list[str]] = {}
    for split, names in groups.items():
        for name in filter(None, dict.fromkeys(names)):
            splits.setdefault(name, []).append(split)
    return {name: its_splits for name, its_splits in splits.items() if len(its_splits) > 1}
