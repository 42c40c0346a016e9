"""License and source of each image, from `license_information.csv` of ROCOv2."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcap.data.groups import unify_groups
from medcap.data.tables import check_ids, read_table

_GAP = r"[\s/_\u00ad\u2010-\u2015\u2212-]*"
_CC = re.compile(rf"\bCC{_GAP}(0(?!\d)|BY(?:{_GAP}(?:NC|ND|SA))*)(?![a-z])", re.IGNORECASE)
_NOT = r"\b(?:no|not|non|nicht|except|without|exclud\w*|prohibit\w*|forbid\w*|restrict\w*)\b"
_USES = r"\b(?:research|academic|scientific|educational|teaching|personal|private)\b"
_NON_COMMERCIAL = re.compile(  # a missed one would be dangerous
    rf"{_NOT}.*\b[ck]omm?er[cz]i|\bcomm?ercial\w*\b.*(?:{_NOT}|\bpermission\b)|\bprofit\b"
    rf"|{_USES}.{{0,20}}\b(?:use|uses|purposes?|only)\b|\bonly\b.{{0,20}}{_USES}|\bacademic research\b",
    re.IGNORECASE | re.DOTALL,
)
_NO_CHANGES = re.compile(r"\b(?:no|without) (?:modif|adapt|alter)|\bunmodified\b", re.IGNORECASE)
_CLAUSE = re.compile(r"(?<![^\W_])(NC|ND)(?![^\W_])", re.IGNORECASE)  # "CC BY 4.0, NC"
_CITATION = re.compile(r"\[[^]]*\]")  # "[Nc, Nd (2020)]": names of authors
_RESERVED = re.compile(r"\brights reserved\b|\b(with|by) permission\b", re.IGNORECASE)
_LONG_NAMES = {  # a missed one would be dangerous: CC BY-NonCommercial is not CC BY
    re.compile(rf"\b{name}", re.IGNORECASE): short
    for name, short in {
        r"creativecommons\.org/licenses/": "CC ", r"creativecommons\.org/publicdomain/zero": "CC0",
        rf"creative{_GAP}commons": "CC", r"attribution": "BY", rf"non{_GAP}com(?:m?er[ci]+al\w*|m?\b)": "NC",
        r"n\.\s?c\b\.?": "NC", rf"non?{_GAP}deriv[a-z]*": "ND", rf"share{_GAP}alike": "SA",
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
    pairs = zip(table["PMCID"], table["Attribution"], strict=True)
    groups = unify_groups([pmcid.strip() or _subject(attribution) for pmcid, attribution in pairs], path)
    licenses = map(license_of, table["Attribution"])
    return {image_id: Source(*source) for image_id, *source in zip(table["ID"], licenses, groups, strict=True)}


def read_attributions(folder: Path) -> dict[str, tuple[str, str]]:
    """Return {image_id: (attribution, link)} from `license_information.csv`; empty if there is no such file."""
    path = folder / "license_information.csv"
    if not path.is_file():
        return {}
    table = read_table(path, ["ID", "Attribution"])
    links = table.get("Link", [""] * len(table["ID"]))
    return dict(zip(table["ID"], zip(table["Attribution"], links, strict=True), strict=True))


def license_of(attribution: str) -> str | None:
    """Return the Creative Commons license in a text without version ("CC BY-NC-ND", "CC0"), "public domain" or None.

    Of several licenses and clauses, the strictest are combined: "CC BY 4.0 (Non-Commercial)" is "CC BY-NC". None if
    the text also reserves rights. Long names are recognized ("Creative Commons Attribution-NonCommercial 4.0").
    """
    attribution = unicodedata.normalize("NFKC", attribution)
    for name, short in _LONG_NAMES.items():
        attribution = name.sub(short, attribution)
    licenses = [set(re.findall(r"0|BY|NC|ND|SA", found[1].upper())) for found in _CC.finditer(attribution)]
    clauses = {found.upper() for found in _CLAUSE.findall(_CITATION.sub(" ", attribution))}
    if _NON_COMMERCIAL.search(attribution):
        clauses.add("NC")
    if _NO_CHANGES.search(attribution):
        clauses.add("ND")
    if _RESERVED.search(attribution) or not (licenses or _PUBLIC_DOMAIN.search(attribution)):
        return None
    parts = set().union(clauses, *licenses)
    if parts <= {"0"}:
        return "CC0" if licenses else "public domain"
    if "BY" not in parts:  # "public domain, not for commercial use"
        return None
    if "ND" in parts:
        parts.discard("SA")  # it only applies to derivatives
    return "-".join(["CC BY", *(part for part in ("NC", "ND", "SA") if part in parts)])


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
