"""What captions get wrong against their references: how often, by kind, with the worst of them as examples.

The rules are those of `extract_facts`. A silent reference does not say that a finding is absent, so an
invented finding is one that the reference does not name. No reference is quoted, only the facts that it names.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from medcap.metrics.clinical.facts import CaptionFacts, extract_facts

EXAMPLES = 3
KINDS = ("wrong modality", "wrong side", "invented finding", "missed finding", "denied finding")
Judged = tuple[Set[str], Set[str]]  # what the caption says, and what the reference says


def failures(captions: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return for each kind of `KINDS` that could occur its `count`, `of` how many captions, and `examples`.

    `scores` (n) puts the worst first. An example is the caption, what of it is wrong (`said`) and what the reference
    names instead (`true`, values of the lexicon); no caption is shown twice. Raises ValueError when the
    three differ in length.
    """
    facts = [(extract_facts(said), extract_facts(true)) for said, true in zip(captions, references, strict=True)]
    worst = [row for _, row in sorted(zip(scores, range(len(facts)), strict=True))]
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        pairs = [(captions[row], _judge(kind, *facts[row])) for row in worst]
        judged = [(caption, *pair) for caption, pair in pairs if pair is not None]
        wrong = [one for one in judged if one[1]]
        if judged:
            found[kind] = {"count": len(wrong), "of": len(judged), "examples": _examples(wrong)}
    return found


def _judge(kind: str, said: CaptionFacts, true: CaptionFacts) -> Judged | None:
    """What is wrong in the caption, empty when nothing is, and what the reference says; None where it cannot occur."""
    if kind in ("wrong modality", "wrong side"):
        fact = "modality" if kind == "wrong modality" else "laterality"
        both_name_one = len(said[fact]) == len(true[fact]) == 1
        return (said[fact] - true[fact], true[fact]) if both_name_one else None
    if kind == "missed finding":
        missed = true["finding"] - said["finding"]
        return (missed and (said["finding"] or {"none"}), missed) if true["finding"] else None
    if kind == "denied finding":
        denied = said["negation"] & true["finding"]
        return ({f"no {value}" for value in denied}, denied) if said["negation"] else None
    return (said["finding"] - true["finding"], true["finding"]) if said["finding"] else None


def _examples(wrong: Sequence[tuple[str, Set[str], Set[str]]]) -> list[dict[str, Any]]:
    """The first few captions, each once."""
    first = {caption: (said, true) for caption, said, true in reversed(wrong)}
    chosen = list(dict.fromkeys(caption for caption, _, _ in wrong))[:EXAMPLES]
    return [
        {"caption": caption, "said": sorted(first[caption][0]), "true": sorted(first[caption][1])}
        for caption in chosen
    ]
