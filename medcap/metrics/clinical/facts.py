"""Extraction of facts from captions: modality, side, body region, present and absent findings, numbers with units."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from medcap.data.concepts import MODALITY_PATTERNS
from medcap.metrics.clinical import lexicon
from medcap.metrics.clinical.negation import is_negated, sentences
from medcap.metrics.clinical.regions import REGIONS

KINDS = ("modality", "laterality", "region", "finding", "negation", "number")
CaptionFacts = Mapping[str, frozenset[str]]


def _matcher(table: Mapping[str, str]) -> Callable[[str], Iterator[tuple[str, int, int]]]:
    """Return a function that yields each value of `table` named in a text, with start and end of the match."""
    names, patterns = list(table), "|".join(f"({pattern})" for pattern in table.values())
    regex = re.compile(rf"\b(?=\w)(?:{patterns})(?!\w)", re.IGNORECASE)

    def mentions(text: str) -> Iterator[tuple[str, int, int]]:
        for match in regex.finditer(text):
            assert match.lastindex is not None
            yield names[match.lastindex - 1], match.start(), match.end()

    return mentions


_regions, _sides, _findings = _matcher(REGIONS), _matcher(lexicon.SIDES), _matcher(lexicon.FINDINGS)
_HYPHENS = str.maketrans("‐‑", "--")  # used by publishers, as in "X‐ray"
_NON = re.compile(r"\bnon(?=[a-z]{4})", re.IGNORECASE)  # a negation: "nonobstructive"
_STUDIES = [(re.compile(pattern, re.IGNORECASE), rest) for pattern, rest in lexicon.STUDIES.items()]
_NO_SIDE = re.compile(rf"\b(?:{'|'.join(lexicon.NO_SIDE.values())})\b", re.IGNORECASE)
_NUMBER = rf"(?:\d+(?:[.,]\d+)?|\b(?:{'|'.join(lexicon.SPELLED)})\b)"
_JOIN = r"(?:\s?[x×*/–-]\s?|-?\s(?:by|to|and|or)\s)"
_UNIT = "|".join(f"(?P<u{number}>{unit})" for number, unit in enumerate(lexicon.UNITS))
_QUANTITY = re.compile(
    rf"(?P<sign>(?<!\w)(?<!\d\s)[-−–])?(?<![\w.])(?P<run>{_NUMBER}(?:{_JOIN}{_NUMBER})*)"
    rf"[\s-]?(?:{_UNIT})(?![a-z0-9²³/])",
    re.IGNORECASE,
)
_FACTORS = list(lexicon.UNITS.values())


@lru_cache(maxsize=2**15)  # references are compared with several systems
def extract_facts(caption: str) -> CaptionFacts:
    """Return the facts that a caption states, by kind of `KINDS`.

    modality     values of `medcap.data.concepts.modality_in_words`; CT angiography is CT, PET/CT is "combined"
    laterality   "left" and "right": the side of a finding or a paired organ; "bilateral" is both. Chambers and
                 arteries of the heart, views, and positions in the image do not count (`lexicon.NO_SIDE`)
    region       values of `medcap.data.concepts.REGIONS`, and "neck"; the skull includes brain, eyes and teeth
    finding      findings stated as present or suspected, values of `lexicon.FINDINGS`
    negation     findings stated as absent or resolved, after NegEx (Chapman et al., 2001)
    number       numbers with a unit, converted to a base unit: "3.5 cm" is "35 mm", "2 years" is "24 months"

    Facts are not inferred, and a side is not linked to a finding.
    """
    text = _NON.sub("non-", " ".join(caption.split()).translate(_HYPHENS))
    findings: dict[bool, set[str]] = {False: set(), True: set()}
    for sentence in sentences(text):
        for value, start, end in _findings(sentence):
            findings[is_negated(sentence, start, end)].add(value)
    return {
        "modality": frozenset(_modalities(text)),
        "laterality": frozenset(_lateralities(text)),
        "region": frozenset(value for value, _, _ in _regions(text)),
        "finding": frozenset(findings[False]),
        "negation": frozenset(findings[True]),
        "number": frozenset(_numbers(text)),
    }


def _modalities(text: str) -> set[str]:
    """Remove the terms of each modality before the next one is searched for: "PET/CT" is not CT."""
    found: list[str] = []
    for study, rest in _STUDIES:
        text = study.sub(rest, text)
    for name, pattern in MODALITY_PATTERNS.items():
        text, count = pattern.subn(" ", text)
        if count:
            found.append(name)
    return {name for name in found if (name, found[0]) != ("PET", "combined")}  # of the tracer in PET/CT


def _lateralities(text: str) -> Iterator[str]:
    for value, _, _ in _sides(_NO_SIDE.sub("#", text)):
        yield from ("left", "right") if value == "both" else (value,)


def _numbers(text: str) -> Iterator[str]:
    """Yield each number that has a unit, in the base unit; "2 x 3 cm" and "2-3 cm" are two numbers."""
    for match in _QUANTITY.finditer(text):
        assert match.lastgroup is not None
        unit, factor = _FACTORS[int(match.lastgroup[1:])]
        is_negative = match["sign"] and unit == "HU"  # before other units a dash is punctuation
        for number in re.findall(_NUMBER, match["run"], re.IGNORECASE):
            yield f"{'-' if is_negative else ''}{round(_value(number) * factor, 4):g} {unit}"


def _value(number: str) -> float:
    """Parse 4.1, 4,1 (decimal comma), 1,200 (thousands) or a word."""
    if number.lower() in lexicon.SPELLED:
        return lexicon.SPELLED.index(number.lower()) + 1
    return float(number.replace(",", "") if re.fullmatch(r"\d+,\d{3}", number) else number.replace(",", "."))
