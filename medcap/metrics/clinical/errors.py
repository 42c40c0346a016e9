"""Factual errors of captions: frequency by kind, with the captions of lowest score as examples.

A reference that does not mention a finding does not exclude it: "invented" means "not in the reference". References
are not quoted; examples contain only their facts.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from medcap.metrics.clinical.concept_terms import ConceptTerms
from medcap.metrics.clinical.facts import CaptionFacts, extract_facts

EXAMPLES = 3
ERROR_KINDS = ("wrong modality", "wrong side", "invented finding", "missed finding", "denied finding")
_Judged = tuple[Set[str], Set[str]]  # wrong values in the caption, values in the reference


@dataclass(frozen=True)
class FailureExample:
    """A caption with an error: its wrong facts (`predicted`) and those of the reference."""

    caption: str
    predicted: list[str]
    reference: list[str]


@dataclass(frozen=True)
class Failure:
    """Number of captions with an error of one kind, and number of captions where it is possible."""

    count: int
    of: int
    examples: list[FailureExample]


def find_failures(
    captions: Sequence[str],
    references: Sequence[str],
    scores: Sequence[float],
    concepts: ConceptTerms | None = None,
) -> dict[str, Failure]:
    """Count the errors of each of `ERROR_KINDS` that is possible.

    Args:
        captions: Predictions.
        references: The reference of each prediction.
        scores: Scores of the predictions; the examples are those of lowest score.
        concepts: Further terms, as in `extract_facts`.
    """
    pairs = zip(captions, references, strict=True)
    facts = [(extract_facts(text, concepts), extract_facts(true, concepts)) for text, true in pairs]
    lowest_first = [row for _, row in sorted(zip(scores, range(len(facts)), strict=True))]
    failures: dict[str, Failure] = {}
    for kind in ERROR_KINDS:
        judgements = [(captions[row], _judge(kind, *facts[row])) for row in lowest_first]
        judged = [(caption, *pair) for caption, pair in judgements if pair is not None]
        wrong = [item for item in judged if item[1]]
        if judged:
            failures[kind] = Failure(len(wrong), len(judged), _examples(wrong))
    return failures


def errors_of(caption: str, reference: str) -> list[str]:
    """Return the kinds of error, of `ERROR_KINDS`, that a caption has."""
    facts = extract_facts(caption), extract_facts(reference)
    judged = {kind: _judge(kind, *facts) for kind in ERROR_KINDS}
    return [kind for kind, pair in judged.items() if pair is not None and pair[0]]


def _judge(kind: str, predicted: CaptionFacts, true: CaptionFacts) -> _Judged | None:
    """Return the wrong values (empty for no error) and those of the reference; None where no error is possible."""
    if kind in ("wrong modality", "wrong side"):
        fact = "modality" if kind == "wrong modality" else "laterality"
        is_possible = len(predicted[fact]) == len(true[fact]) == 1
        return (predicted[fact] - true[fact], true[fact]) if is_possible else None
    if kind == "missed finding":
        missed = true["finding"] - predicted["finding"]
        return (missed and (predicted["finding"] or {"none"}), missed) if true["finding"] else None
    if kind == "denied finding":
        denied = predicted["negation"] & true["finding"]
        return ({f"no {value}" for value in denied}, denied) if predicted["negation"] else None
    return (predicted["finding"] - true["finding"], true["finding"]) if predicted["finding"] else None


def _examples(wrong: Sequence[tuple[str, Set[str], Set[str]]]) -> list[FailureExample]:
    """Return the first `EXAMPLES` different captions."""
    first: dict[str, FailureExample] = {}
    for caption, predicted, true in wrong:
        first.setdefault(caption, FailureExample(caption, sorted(predicted), sorted(true)))
    return list(first.values())[:EXAMPLES]
