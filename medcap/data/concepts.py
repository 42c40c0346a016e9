"""Modality and body region of an image, from its UMLS concepts and from the words of its caption."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from medcap.data.tables import read_table

# The manually curated concepts of ROCOv2 (Rückert et al., 2024, Scientific Data 11:688): modality of every image,
# region of plain X-rays. Images of combined modalities (PET/CT) carry none.
MODALITIES = {
    "C0040405": "CT",
    "C1306645": "X-ray",
    "C0041618": "ultrasound",
    "C0024485": "MRI",
    "C0002978": "angiography",
    "C0032743": "PET",
}
REGIONS = {
    "C0817096": "chest",
    "C0000726": "abdomen",
    "C0030797": "pelvis",
    "C0037303": "skull",
    "C0037949": "spine",
    "C0006141": "breast",
    "C1140618": "upper extremity",
    "C0023216": "lower extremity",
}
# in this order, the first that is found names the modality: CT angiography is CT, as the manual concepts have it
_WORDS = {
    "combined": r"(pet|spect)\s*(/|-|–|and)?\s*(ct|tc|mri?)\b|positron.{0,40}(computed tomography|with ct)",
    "PET": r"\bpet\b|positron|\bfdg\b|scintigra|\bspect\b",
    "MRI": r"\bmr[ia]?s?\b|\bfmri\b|magnetic resonance|t[12]-?\s?w|\bflair\b|\bdwi\b|\bmrcp\b|\bstir\b",
    "CT": r"\b(cb)?cta?s?\b|\bhrct\b|\bcects?\b|(?<!pan)tomogra[mp]|tomodensito|hounsfield",
    "angiography": r"(?<!chol)angiogra|arteriogra|venogra|aortogra|\bdsa\b|digital subtraction|ventriculography",
    "ultrasound": r"ultraso|\bsono|sonogra|echocardio|echogra|doppler|\btte\b|\btee\b|\beus\b|\bus\b|\bpocus\b",
    "X-ray": r"x-?\s?ray|radiogra|roentgen|mammogra|fluorosc|panoram|pantomo|\bopg\b|\bcxr\b|plain film|cephalo",
}
MODALITY_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _WORDS.items()}


def modality_of(manual_cuis: Sequence[str]) -> str | None:
    """Return the modality that an image's manual concepts name: a value of `MODALITIES`, or None."""
    return next((MODALITIES[cui] for cui in manual_cuis if cui in MODALITIES), None)


def region_of(manual_cuis: Sequence[str]) -> str | None:
    """Return the body region that an image's manual concepts name (plain X-rays alone): a value of `REGIONS`."""
    return next((REGIONS[cui] for cui in manual_cuis if cui in REGIONS), None)


def modality_in_words(caption: str) -> str | None:
    """Return the modality that the words of a caption name, "combined" for PET/CT and the like, or None.

    A guess by key words, for captions without concepts. Against the manual concepts of ROCOv2's validation split it
    names one for 79 % of the 9,774 captions whose concepts do, and 98 % of those are right.
    """
    return next((name for name, pattern in MODALITY_PATTERNS.items() if pattern.search(caption)), None)


def concept_names(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Return {CUI: canonical name} from `cui_mapping.csv` of a folder in ROCOv2's layout; empty without that file."""
    path = Path(folder) / "cui_mapping.csv"
    if not path.is_file():
        return {}
    table = read_table(path, ["CUI", "Canonical name"])
    return dict(zip(table["CUI"], table["Canonical name"], strict=True))


def split_cuis(value: str | Sequence[str | None] | None) -> list[str]:
    """Return the concepts of a cell `C1;C2` or of a list; blank cells are empty lists."""
    parts = value.split(";") if isinstance(value, str) else value or []
    return [part.strip() for part in parts if part and part.strip()]
