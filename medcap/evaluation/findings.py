"""What was said about the picture: facts of the prediction against those of the reference, or against the truth.

On phantoms the truth is known, so every caption can be judged right or wrong, fact by fact; elsewhere the reference is
all there is, read by the same rules as the prediction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from medcap.evaluation.facts import KINDS, Facts, facts_of

FACTS = ("modality", "side", "level", "finding")  # of phantoms
SIDES = ("left", "right", "both", "none")

# A fact is said when exactly one of its values is named: naming both sides is no answer.
WORDS = {
    "modality": {
        "x-ray": r"x-?rays?|radiographs?",
        "ct": r"ct|computed tomography",
        "mri": r"mri|magnetic resonance",
        "ultrasound": r"ultrasounds?|sonograms?|ultrasonography",
        "angiography": r"angiograph(?:y|ic)|angiograms?",
    },
    "side": {"left": r"left(?:-sided)?", "right": r"right(?:-sided)?"},
    "level": {"upper": r"upper", "middle": r"middle|mid", "lower": r"lower"},
    "finding": {
        "mass": r"mass(?:es)?|tumou?rs?",
        "cyst": r"cysts?|cystic",
        "calcification": r"calcifications?|calcified",
        "abscess": r"abscess(?:es)?",
        "hematoma": r"ha?ematomas?",
    },
}
_PATTERNS = {
    fact: {value: re.compile(rf"\b(?:{words})\b") for value, words in values.items()} for fact, values in WORDS.items()
}


def said(caption: str) -> dict[str, str | None]:
    """For each fact the one value that `caption` names; None when it names none, or several."""
    text = caption.lower()
    named = {
        fact: [value for value, pattern in values.items() if pattern.search(text)]
        for fact, values in _PATTERNS.items()
    }
    return {fact: values[0] if len(values) == 1 else None for fact, values in named.items()}


def read_truth(data: str | Path, split: str) -> dict[str, dict[str, Any]] | None:
    """The findings that lie beside a phantom split, by id; None for data that has none."""
    path = Path(data) / f"{split}_findings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def findings_accuracy(
    predictions: Sequence[str], ids: Sequence[str], truth: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Share of images, 0 to 1, whose caption names each fact rightly.

    Modality counts over all images; side, level and finding over those that show a finding.
    """
    right: dict[str, list[bool]] = {fact: [] for fact in FACTS}
    for caption, image_id in zip(predictions, ids, strict=True):
        words, facts = said(caption), truth[image_id]
        right["modality"].append(words["modality"] == facts["modality"])
        for finding in facts["findings"]:
            for fact in ("side", "level", "finding"):
                right[fact].append(words[fact] == finding[fact])
    return {fact: sum(hits) / len(hits) for fact, hits in right.items() if hits}


def score_facts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """What the predictions say against what the references say, read by the same rules (`facts_of`).

    For each of `KINDS` micro-averaged `precision`, `recall` and `f1`, 0 to 1 (0 where there is nothing to divide by),
    of `said` facts in the predictions and `true` ones in the references. `sides` is {reference: {prediction: count}}
    over all captions, each of left, right, both or none; `wrong_side`, 0 to 1 or None without any, is the share of
    swapped sides in the `one_side` captions where reference and prediction name just one. Raises ValueError when the
    two differ in length.
    """
    pairs = [(facts_of(said), facts_of(true)) for said, true in zip(predictions, references, strict=True)]
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


def _side(facts: Facts) -> str:
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
