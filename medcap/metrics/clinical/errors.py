"""Errors of captions against their references: frequency by kind, with the captions of lowest score as examples.

Facts come from `extract_facts`. A reference that does not mention a finding does not exclude it, so "invented" means
"not named by the reference". No reference is quoted, only the facts that it names.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from medcap.metrics.clinical.facts import CaptionFacts, extract_facts

EXAMPLES = 3
ERROR_KINDS = ("wrong modality", "wrong side", "invented finding", "missed finding", "denied finding")
_Judged = tuple[Set[str], Set[str]]  # wrong values in the caption, values in the reference


@dataclass(frozen=True)
class FailureExample:
    """A caption with an error: its wrong values (`predicted`) and those of the reference, in terms of the lexicon."""

    caption: str
    predicted: list[str]
    reference: list[str]


@dataclass(frozen=True)
class Failure:
    """How many captions have an error of one kind, out of `of` where it is possible."""

    count: int
    of: int
    examples: list[FailureExample]


def find_failures(captions: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> dict[str, Failure]:
    """Count the errors of each of `ERROR_KINDS` that is possible in these captions.

    Args:
        captions: n predictions.
        references: n references.
        scores: n scores; the examples are the captions of lowest score, each caption once.

    Raises:
        ValueError: The three differ in length.
    """
    facts = [(extract_facts(text), extract_facts(true)) for text, true in zip(captions, references, strict=True)]
    lowest_first = [row for _, row in sorted(zip(scores, range(len(facts)), strict=True))]
    found: dict[str, Failure] = {}
    for kind in ERROR_KINDS:
        pairs = [(captions[row], _judge(kind, *facts[row])) for row in lowest_first]
        judged = [(caption, *pair) for caption, pair in pairs if pair is not None]
        wrong = [item for item in judged if item[1]]
        if judged:
            found[kind] = Failure(len(wrong), len(judged), _examples(wrong))
    return found


def _judge(kind: str, predicted: CaptionFacts, true: CaptionFacts) -> _Judged | None:
    """Return the wrong values (empty if there are none) and the reference's; None where the error is not possible."""
    if kind in ("wrong modality", "wrong side"):
        fact = "modality" if kind == "wrong modality" else "laterality"
        both_name_one = len(predicted[fact]) == len(true[fact]) == 1
        return (predicted[fact] - true[fact], true[fact]) if both_name_one else None
    if kind == "missed finding":
        missed = true["finding"] - predicted["finding"]
        return (missed and (predicted["finding"] or {"none"}), missed) if true["finding"] else None
    if kind == "denied finding":
        denied = predicted["negation"] & true["finding"]
        return ({f"no {value}" for value in denied}, denied) if predicted["negation"] else None
    return (predicted["finding"] - true["finding"], true["finding"]) if predicted["finding"] else None


def _examples(wrong: Sequence[tuple[str, Set[str], Set[str]]]) -> list[FailureExample]:
    """Return the first few captions, each once."""
    first = {caption: (predicted, true) for caption, predicted, true in reversed(wrong)}
    chosen = list(dict.fromkeys(caption for caption, _, _ in wrong))[:EXAMPLES]
    return [FailureExample(caption, *map(sorted, first[caption])) for caption in chosen]
