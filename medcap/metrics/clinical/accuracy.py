"""Factual accuracy: facts of predictions against facts of references, extracted by the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from medcap.metrics.clinical.concept_terms import ConceptTerms
from medcap.metrics.clinical.facts import KINDS, CaptionFacts, extract_facts

LATERALITIES = ("left", "right", "both", "none")


@dataclass(frozen=True)
class PrecisionRecall:
    """Micro-averaged precision, recall and F1, 0 to 1 (0 where undefined), and the numbers of facts."""

    precision: float
    recall: float
    f1: float
    predicted: int
    reference: int


@dataclass(frozen=True)
class FactScores:
    """Agreement of the facts in predictions and references.

    Attributes:
        kinds: Precision and recall by kind of fact (`KINDS`).
        sides: Number of captions as {reference: {prediction: n}} over `LATERALITIES`.
        one_side: Number of captions where reference and prediction each name exactly one side.
        wrong_side: Fraction of these, 0 to 1, with left and right swapped; None if there are none.
    """

    kinds: dict[str, PrecisionRecall]
    sides: dict[str, dict[str, int]]
    one_side: int
    wrong_side: float | None = None


def score_facts(
    predictions: Sequence[str], references: Sequence[str], concepts: ConceptTerms | None = None
) -> FactScores:
    """Compare the facts of each prediction with those of its reference; `concepts` as in `extract_facts`."""
    pairs = [
        (extract_facts(text, concepts), extract_facts(true, concepts))
        for text, true in zip(predictions, references, strict=True)
    ]
    kinds = {kind: micro_average([(facts[kind], true[kind]) for facts, true in pairs]) for kind in KINDS}
    sides = {row: dict.fromkeys(LATERALITIES, 0) for row in LATERALITIES}
    for facts, true in pairs:
        sides[_side(true)][_side(facts)] += 1
    swapped = sides["left"]["right"] + sides["right"]["left"]
    one_side = swapped + sides["left"]["left"] + sides["right"]["right"]
    return FactScores(kinds, sides, one_side, swapped / one_side if one_side else None)


def _side(facts: CaptionFacts) -> str:
    named = facts["laterality"]
    return "both" if len(named) == 2 else next(iter(named), "none")


def micro_average(pairs: Iterable[tuple[Set[str], Set[str]]]) -> PrecisionRecall:
    """Pool pairs of (predicted, reference) sets, and return their precision, recall and F1."""
    hits = predicted = reference = 0
    for left, right in pairs:
        hits, predicted, reference = hits + len(left & right), predicted + len(left), reference + len(right)
    return PrecisionRecall(
        precision=hits / predicted if predicted else 0.0,
        recall=hits / reference if reference else 0.0,
        f1=2 * hits / (predicted + reference) if predicted + reference else 0.0,
        predicted=predicted,
        reference=reference,
    )
