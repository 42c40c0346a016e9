"""The known truth of phantoms: what was drawn, and how many captions state it correctly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FACTS = ("modality", "side", "level", "finding")  # of phantoms
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
    """Return the fraction of images, 0 to 1, whose caption states each fact correctly.

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
