"""Write captions of phantoms: the same facts in varied words, in the style of ROCOv2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcap.phantom.images import Phantom

STUDY_TERMS = {
    "x-ray": ("Chest X-ray", "Posteroanterior chest X-ray", "Chest radiograph", "Plain chest radiograph"),
    "ct": ("CT scan", "Axial CT image", "Contrast-enhanced CT", "Computed tomography (CT) scan"),
    "mri": ("MRI", "T2-weighted MRI", "Axial T1-weighted MRI", "Magnetic resonance imaging (MRI)"),
    "ultrasound": ("Ultrasound", "Ultrasound image", "Transverse ultrasound", "B-mode ultrasound"),
    "angiography": ("Angiography", "Digital subtraction angiography", "Angiogram", "Catheter angiography"),
}
REGION_TERMS = {
    "x-ray": ("lung field", "lung zone"),
    "ct": ("abdomen", "quadrant"),
    "mri": ("hemisphere", "white matter"),
    "ultrasound": ("liver lobe", "kidney pole"),
    "angiography": ("branch", "territory"),
}
FINDING_TERMS = {
    "mass": ("mass", "solid mass", "tumor"),
    "cyst": ("cyst", "simple cyst", "cystic lesion"),
    "calcification": ("calcification", "cluster of calcifications", "calcified lesion"),
    "abscess": ("abscess", "rim-enhancing abscess", "ring-like abscess"),
    "hematoma": ("hematoma", "crescent-shaped hematoma"),
}
LEVEL_TERMS = {"upper": ("upper",), "middle": ("middle", "mid"), "lower": ("lower",)}
SHOWING = ("showing", "demonstrating", "revealing", "shows", "with")
ARROWS = (" (arrow)", " (white arrow)", " (arrows)", " (arrowhead)")
NORMAL = ("without abnormality", "with normal findings", "showing no lesion")
PATIENTS = ("woman", "man")


def caption_of(phantom: Phantom, rng: np.random.Generator) -> str:
    """Return a random caption that states the facts of `phantom`."""
    study = _choose(rng, STUDY_TERMS[phantom.modality])
    if phantom.finding is None:
        return f"{study} {_choose(rng, NORMAL)}."
    lesion, location = _lesion(phantom, rng), _location(phantom, rng)
    arrow = _choose(rng, ARROWS) if rng.random() < 0.35 else ""
    patient = f" in a {rng.integers(19, 90)}-year-old {_choose(rng, PATIENTS)}" if rng.random() < 0.08 else ""
    if rng.random() < 0.25:
        return f"{lesion[0].upper()}{lesion[1:]} in the {location} on {_lower_first(study)}{patient}{arrow}."
    return f"{study} {_choose(rng, SHOWING)} {lesion} in the {location}{patient}{arrow}."


def _lesion(phantom: Phantom, rng: np.random.Generator) -> str:
    """Return the finding with an article and, mostly, a size in words or centimetres."""
    assert phantom.finding is not None
    name = _choose(rng, FINDING_TERMS[phantom.finding])
    style = rng.random()
    if style < 0.25:
        return f"a {phantom.diameter_cm} cm {name}"
    if style < 0.35:
        shorter = max(0.4, phantom.diameter_cm * float(rng.uniform(0.7, 0.95)))
        return f"a {name} measuring {phantom.diameter_cm} x {shorter:.1f} cm"
    if style < 0.85:
        return f"a {phantom.size} {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _location(phantom: Phantom, rng: np.random.Generator) -> str:
    level, region = _choose(rng, LEVEL_TERMS[phantom.level]), _choose(rng, REGION_TERMS[phantom.modality])
    return f"{phantom.side} {level} {region}" if rng.random() < 0.8 else f"{level} {phantom.side} {region}"


def _choose(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Return a random term; each is half as probable as the one before, so that a model can learn the usual one."""
    weights = 0.5 ** np.arange(len(words))
    return words[rng.choice(len(words), p=weights / weights.sum())]


def _lower_first(study: str) -> str:
    """Write the first letter in lower case, except in CT, MRI, T2 and X-ray."""
    return study if study[:2].isupper() or study[1].isdigit() or study[1] == "-" else study[0].lower() + study[1:]
