"""Factual accuracy: facts of the predictions against those of the references, extracted by the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from medcap.metrics.clinical.facts import KINDS, CaptionFacts, extract_facts

SIDES = ("left", "right", "both", "none")


def score_facts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """What the predictions say against what the references say, read by the same rules (`extract_facts`).

    For each of `KINDS` micro-averaged `precision`, `recall` and `f1`, 0 to 1 (0 where there is nothing to divide by),
    of `said` facts in the predictions and `true` ones in the references. `sides` is {reference: {prediction: count}}
    over all captions, each of left, right, both or none; `wrong_side`, 0 to 1 or None without any, is the share of
    swapped sides in the `one_side` captions where reference and prediction name just one. Raises ValueError when the
    two differ in length.
    """
    pairs = [(extract_facts(said), extract_facts(true)) for said, true in zip(predictions, references, strict=True)]
    kinds = {kind: micro([(said[kind], true[kind]) for said, true in pairs]) for kind in KINDS}
    sides = {row: dict.fromkeys(SIDES, 0) for row in SIDES}
    for said, true in pairs:
        sides[_side(true)][_side(said)] += 1
    swapped = sides["left"]["right"] + sides["right"]["left"]
    one_side = swapped + sides["left"]["left"] + sides["right"]["right"]
    return {
        "kinds": kinds,
        "sides": sides,
        "one_side": one_side,
        "wrong_side": swapped / one_side if one_side else None,
    }


def _side(facts: CaptionFacts) -> str:
    named = facts["laterality"]
    return "both" if len(named) == 2 else next(iter(named), "none")


def micro(pairs: Iterable[tuple[Set[str], Set[str]]]) -> dict[str, float]:
    """Precision, recall and F1, 0 to 1, of sets of what was `said` and what is `true`, pooled over all pairs."""
    right = said = true = 0
    for left, there in pairs:
        right, said, true = right + len(left & there), said + len(left), true + len(there)
    return {
        "precision": right / said if said else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (said + true) if said + true else 0.0,
        "said": said,
        "true": true,
    }
