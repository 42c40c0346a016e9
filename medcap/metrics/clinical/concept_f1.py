"""Concept F1: concepts of the data set, matched in captions by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from medcap.data.concepts import MODALITY_BY_CUI, synonyms
from medcap.data.terms import normalize
from medcap.metrics.clinical.accuracy import PrecisionRecall, micro_average
from medcap.metrics.clinical.facts import extract_facts

WHAT = (
    "Names of the data set's concepts matched as strings in the prediction, against the concepts of the image. Does "
    "not use MedCAT: not comparable with the concept F1 of ImageCLEFmedical."
)


@dataclass(frozen=True)
class ConceptScores(PrecisionRecall):
    """Agreement of the concepts in predictions with those of the images.

    Attributes:
        what: Describes the method.
        mean_f1: Mean of the F1 of each image, 0 to 1, as in ImageCLEFmedical's concept detection; an image without
            concepts has 1 if none is predicted, else 0.
    """

    what: str = WHAT
    mean_f1: float | None = None


def concept_f1(predictions: Sequence[str], cuis: Sequence[Sequence[str]], names: Mapping[str, str]) -> ConceptScores:
    """Compare the concepts named in each prediction with `cuis`, those of its image; `names` are by CUI.

    A concept without a name is never found. The score of the references is a practical upper bound.
    """
    lookup = _lookup(names)
    pairs = [(_concepts_in(text, lookup), set(own)) for text, own in zip(predictions, cuis, strict=True)]
    per_image = [micro_average([pair]).f1 if any(pair) else 1.0 for pair in pairs]
    mean_f1 = sum(per_image) / len(per_image) if per_image else None
    return ConceptScores(**asdict(micro_average(pairs)), mean_f1=mean_f1)


def _concepts_in(text: str, lookup: Mapping[tuple[str, ...], Sequence[str]]) -> set[str]:
    """Return the CUIs of the longest name at each position, and of the modality."""
    found = {cui for cui, modality in MODALITY_BY_CUI.items() if modality in extract_facts(text)["modality"]}
    tokens, longest = _tokens(text), max(map(len, lookup), default=0)
    start = 0
    while start < len(tokens):
        sizes = range(min(longest, len(tokens) - start), 0, -1)
        size = next((size for size in sizes if tokens[start : start + size] in lookup), 0)
        found.update(lookup[tokens[start : start + size]] if size else ())
        start += size or 1
    return found


def _lookup(names: Mapping[str, str]) -> dict[tuple[str, ...], list[str]]:
    lookup: dict[tuple[str, ...], list[str]] = {}
    for cui, name in names.items():
        for tokens in {_tokens(synonym) for synonym in synonyms(name)} - {()}:
            lookup.setdefault(tokens, []).append(cui)
    return lookup


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(normalize(word) for word in re.findall(r"[a-z0-9]+", text.lower()))
