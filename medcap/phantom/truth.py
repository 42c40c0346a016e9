"""The known facts of phantoms, and how many captions state them correctly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FACTS = ("modality", "side", "level", "finding")
FACT_PATTERNS = {
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


def stated_facts(caption: str) -> dict[str, str | None]:
    """Return the value of each fact that `caption` states, None if it states none or several."""
    text = caption.lower()
    stated = {
        fact: [value for value, pattern in patterns.items() if re.search(rf"\b(?:{pattern})\b", text)]
        for fact, patterns in FACT_PATTERNS.items()
    }
    return {fact: values[0] if len(values) == 1 else None for fact, values in stated.items()}


def read_truth(data: str | Path, split: str) -> dict[str, dict[str, Any]] | None:
    """Return {image_id: facts} of a split of a phantom data set, None for other data."""
    path = Path(data) / f"{split}_findings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def findings_accuracy(
    predictions: Sequence[str], ids: Sequence[str], truth: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Return the fraction of images, 0 to 1, whose caption states each fact correctly.

    The modality is checked on all images; side, level and finding on those with a finding.
    """
    correct: dict[str, list[bool]] = {fact: [] for fact in FACTS}
    for caption, image_id in zip(predictions, ids, strict=True):
        stated, facts = stated_facts(caption), truth[image_id]
        correct["modality"].append(stated["modality"] == facts["modality"])
        for finding in facts["findings"]:
            for fact in ("side", "level", "finding"):
                correct[fact].append(stated[fact] == finding[fact])
    return {fact: sum(values) / len(values) for fact, values in correct.items() if values}
