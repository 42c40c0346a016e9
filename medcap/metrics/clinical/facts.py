"""What the words of a caption say: modality, side, body region, findings there and absent, numbers with units."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from medcap.data.concepts import MODALITY_PATTERNS
from medcap.metrics.clinical import lexicon
from medcap.metrics.clinical.negation import is_negated, sentences
from medcap.metrics.clinical.regions import REGIONS

KINDS = ("modality", "laterality", "region", "finding", "negation", "number")
_HYPHENS = str.maketrans("‐‑", "--")  # publishers set "X‐ray" with either
_NON = re.compile(r"\bnon(?=[a-z]{4})", re.IGNORECASE)  # a cue of negation: "nonobstructive"
CaptionFacts = Mapping[str, frozenset[str]]


@lru_cache(maxsize=2**15)  # references are compared with several systems, a constant caption with all of them
def extract_facts(caption: str) -> CaptionFacts:
    """Return what `caption` says, by kind of `KINDS`; an empty set for a kind it is silent on.

    modality     values of `medcap.data.concepts.modality_in_words`; CT angiography is CT, PET/CT is "combined"
    laterality   "left" and "right", the side of a finding or of a paired part; "bilateral" says both. The chambers
                 and arteries of the heart, views and positions in the image are no side: see `lexicon.NO_SIDE`
    region       values of `medcap.data.concepts.REGIONS`, and "neck"; the skull holds the brain, eyes and teeth
    finding      what is said to be there, of the values of `lexicon.FINDINGS`; "suspected" counts as there
    negation     what is said to be absent, or gone, of the same values, after NegEx (Chapman et al., 2001)
    number       a number and its unit in a base unit: "3.5 cm" is "35 mm", "2 years" is "24 months"

    The words alone decide: a fact that needs knowledge to infer is not found, and a side has no object.
    """
    text = _NON.sub("non-", " ".join(caption.split()).translate(_HYPHENS))
    present, absent = _findings(text)
    return {
        "modality": frozenset(_modalities(text)),
        "laterality": frozenset(_sides(text)),
        "region": frozenset(value for value, _, _ in _mentions(_REGIONS, _REGION_NAMES, text)),
        "finding": frozenset(present),
        "negation": frozenset(absent),
        "number": frozenset(_numbers(text)),
    }


_REGIONS, _REGION_NAMES = lexicon.compile_terms(REGIONS), list(REGIONS)
_FINDINGS, _FINDING_NAMES = lexicon.compile_terms(lexicon.FINDINGS), list(lexicon.FINDINGS)
_SIDES, _SIDE_NAMES = lexicon.compile_terms(lexicon.SIDES), list(lexicon.SIDES)


def _mentions(lexicon: re.Pattern[str], names: list[str], text: str) -> Iterator[tuple[str, int, int]]:
    """Each value named in `text`, with where its words begin and end."""
    for match in lexicon.finditer(text):
        assert match.lastgroup is not None  # patterns hold no other named group
        yield names[int(match.lastgroup[1:])], match.start(), match.end()


_STUDIES = [(re.compile(pattern, re.IGNORECASE), rest) for pattern, rest in lexicon.STUDIES.items()]


def _modalities(text: str) -> set[str]:
    """Every modality named: the words of one are taken away before the next is looked for ("PET/CT" is no CT)."""
    found: list[str] = []
    for study, rest in _STUDIES:
        text = study.sub(rest, text)
    for name, pattern in MODALITY_PATTERNS.items():
        text, count = pattern.subn(" ", text)
        if count:
            found.append(name)
    return {name for name in found if (name, found[0]) != ("PET", "combined")}  # of the tracer in PET/CT


_NO_SIDE = re.compile(rf"\b(?:{'|'.join(lexicon.NO_SIDE.values())})\b", re.IGNORECASE)


def _sides(text: str) -> Iterator[str]:
    for value, _, _ in _mentions(_SIDES, _SIDE_NAMES, _NO_SIDE.sub("#", text)):
        yield from ("left", "right") if value == "both" else (value,)


def _findings(text: str) -> tuple[set[str], set[str]]:
    """The findings said to be there, and those said to be absent; one may be both, in two places."""
    present, absent = set[str](), set[str]()
    for sentence in sentences(text):
        for value, start, end in _mentions(_FINDINGS, _FINDING_NAMES, sentence):
            (absent if is_negated(sentence, start, end) else present).add(value)
    return present, absent


_NUMBER = rf"(?:\d+(?:[.,]\d+)?|\b(?:{'|'.join(lexicon.SPELLED)})\b)"
_JOIN = r"(?:\s?[x×*/–-]\s?|-?\s(?:by|to|and|or)\s)"
_UNIT = "|".join(f"(?P<u{number}>{unit})" for number, unit in enumerate(lexicon.UNITS))
_QUANTITY = re.compile(
    rf"(?P<sign>(?<!\w)(?<!\d\s)[-−–])?(?<![\w.])(?P<run>{_NUMBER}(?:{_JOIN}{_NUMBER})*)"
    rf"[\s-]?(?:{_UNIT})(?![a-z0-9²³/])",
    re.IGNORECASE,
)
_FACTORS = list(lexicon.UNITS.values())


def _numbers(text: str) -> Iterator[str]:
    """Each number that has a unit, in the base unit; "2 x 3 cm" and "2-3 cm" are two numbers."""
    for match in _QUANTITY.finditer(text):
        assert match.lastgroup is not None
        unit, factor = _FACTORS[int(match.lastgroup[1:])]
        negative = match["sign"] and unit == "HU"  # elsewhere the dash is one of punctuation
        for number in re.findall(_NUMBER, match["run"], re.IGNORECASE):
            yield f"{'-' if negative else ''}{round(_value(number) * factor, 4):g} {unit}"


def _value(number: str) -> float:
    """4.1, 4,1 (a decimal comma), 1,200 (thousands) or a word."""
    if number.lower() in lexicon.SPELLED:
        return lexicon.SPELLED.index(number.lower()) + 1
    return float(number.replace(",", "") if re.fullmatch(r"\d+,\d{3}", number) else number.replace(",", "."))
