"""What a radiologist might write under a phantom: the same facts in varied words, in the manner of ROCOv2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcap.phantom.images import Phantom

STUDY = {
    "x-ray": ("Chest X-ray", "Posteroanterior chest X-ray", "Chest radiograph", "Plain chest radiograph"),
    "ct": ("CT scan", "Axial CT image", "Contrast-enhanced CT", "Computed tomography (CT) scan"),
    "mri": ("MRI", "T2-weighted MRI", "Axial T1-weighted MRI", "Magnetic resonance imaging (MRI)"),
    "ultrasound": ("Ultrasound", "Ultrasound image", "Transverse ultrasound", "B-mode ultrasound"),
    "angiography": ("Angiography", "Digital subtraction angiography", "Angiogram", "Catheter angiography"),
}
REGION = {
    "x-ray": ("lung field", "lung zone"),
    "ct": ("abdomen", "quadrant"),
    "mri": ("hemisphere", "white matter"),
    "ultrasound": ("liver lobe", "kidney pole"),
    "angiography": ("branch", "territory"),
}
FINDING = {
    "mass": ("mass", "solid mass", "tumor"),
    "cyst": ("cyst", "simple cyst", "cystic lesion"),
    "calcification": ("calcification", "cluster of calcifications", "calcified lesion"),
    "abscess": ("abscess", "rim-enhancing abscess", "ring-like abscess"),
    "hematoma": ("hematoma", "crescent-shaped hematoma"),
}
LEVEL = {"upper": ("upper",), "middle": ("middle", "mid"), "lower": ("lower",)}
SHOWING = ("showing", "demonstrating", "revealing", "shows", "with")
ARROWS = (" (arrow)", " (white arrow)", " (arrows)", " (arrowhead)")
NORMAL = ("without abnormality", "with normal findings", "showing no lesion")
PATIENTS = ("woman", "man")


def caption_of(phantom: Phantom, rng: np.random.Generator) -> str:
    """Return one caption of `phantom`; another call gives other words for the same facts."""
    study = _one(rng, STUDY[phantom.modality])
    if phantom.finding is None:
        return f"{study} {_one(rng, NORMAL)}."
    lesion, place = _lesion(phantom, rng), _place(phantom, rng)
    arrow = _one(rng, ARROWS) if rng.random() < 0.35 else ""
    patient = f" in a {rng.integers(19, 90)}-year-old {_one(rng, PATIENTS)}" if rng.random() < 0.08 else ""
    if rng.random() < 0.25:
        return f"{_capitalised(lesion)} in the {place} on {_lower_first(study)}{patient}{arrow}."
    return f"{study} {_one(rng, SHOWING)} {lesion} in the {place}{patient}{arrow}."


def _lesion(phantom: Phantom, rng: np.random.Generator) -> str:
    """An article, a size in words or centimetres or not at all, and the finding."""
    assert phantom.finding is not None
    name = _one(rng, FINDING[phantom.finding])
    way = rng.random()
    if way < 0.25:
        return f"a {phantom.diameter_cm} cm {name}"
    if way < 0.35:
        shorter = max(0.4, phantom.diameter_cm * float(rng.uniform(0.7, 0.95)))
        return f"a {name} measuring {phantom.diameter_cm} x {shorter:.1f} cm"
    if way < 0.85:
        return f"a {phantom.size} {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _place(phantom: Phantom, rng: np.random.Generator) -> str:
    level, region = _one(rng, LEVEL[phantom.level]), _one(rng, REGION[phantom.modality])
    return f"{phantom.side} {level} {region}" if rng.random() < 0.8 else f"{level} {phantom.side} {region}"


def _one(rng: np.random.Generator, words: Sequence[str]) -> str:
    """The first wording is the commonest, as in life: a captioner can learn what people usually say."""
    shares = 0.5 ** np.arange(len(words))
    return words[rng.choice(len(words), p=shares / shares.sum())]


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _lower_first(study: str) -> str:
    """CT and MRI keep their capitals in the middle of a sentence."""
    return study if study[:2].isupper() or study[1].isdigit() or study[1] == "-" else study[0].lower() + study[1:]
