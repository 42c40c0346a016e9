"""Write a phantom data set: a small synthetic ROCOv2 with known findings, in the files of ROCOv2."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from medcap.io import new_folder
from medcap.phantom.captions import caption_of
from medcap.phantom.images import Phantom, draw, random_phantom

UMLS_CONCEPTS = {  # CUI and canonical name
    "x-ray": ("C1306645", "Plain x-ray"),
    "ct": ("C0040405", "X-Ray Computed Tomography"),
    "mri": ("C0024485", "Magnetic Resonance Imaging"),
    "ultrasound": ("C0041618", "Ultrasonography"),
    "angiography": ("C0002978", "angiogram"),
    "mass": ("C0577559", "Mass of body structure"),
    "cyst": ("C0010709", "Cyst"),
    "calcification": ("C0006660", "Physiologic calcification"),
    "abscess": ("C0000833", "Abscess"),
    "hematoma": ("C0018944", "Hematoma"),
}
LICENSE = "made by medcap, Apache-2.0"
ZIP_DATE = (2024, 1, 1, 0, 0, 0)  # constant, so that the same seed gives the same bytes


def write_phantom(out: Path, *, train: int, valid: int, test: int, seed: int = 0) -> None:
    """Write `train`, `valid` and `test` phantoms into a new or empty folder; the same seed gives the same bytes.

    The files are those of Zenodo record 10821435. In addition `{split}_findings.json` has the facts of each image:
    modality, and of the finding name, side, level, size and diameter in cm.

    Raises:
        ValueError: A split has no images.
        FileExistsError: `out` is not empty.
    """
    counts = {"train": train, "valid": valid, "test": test}
    if invalid := [f"{split} is {count}" for split, count in counts.items() if count < 1]:
        raise ValueError(f"{invalid[0]}: each split needs at least one image")
    with new_folder(out) as part:
        _write_files(part, counts, seed)


def _write_files(part: Path, counts: Mapping[str, int], seed: int) -> None:
    licenses = []
    with tqdm(total=sum(counts.values()), desc="drawing phantoms", unit="image") as bar:
        for number, (split, count) in enumerate(counts.items()):
            ids = _write_split(part, split, count, np.random.default_rng([seed, number]), bar)
            licenses += [(image_id, "", LICENSE, "") for image_id in ids]
    _write_csv(part / "license_information.csv", ("ID", "PMCID", "Attribution", "Link"), licenses)
    _write_csv(part / "cui_mapping.csv", ("CUI", "Canonical name"), UMLS_CONCEPTS.values())


def _write_split(folder: Path, split: str, count: int, rng: np.random.Generator, bar: tqdm) -> list[str]:
    """Write images, captions, concepts and findings of one split; return its ids."""
    phantoms = {f"PHANTOM_{split}_{number:06d}": random_phantom(rng) for number in range(1, count + 1)}
    captions = [(image_id, caption_of(phantom, rng)) for image_id, phantom in phantoms.items()]
    _write_csv(folder / f"{split}_captions.csv", ("ID", "Caption"), captions)
    for name, facts in (("concepts", ("modality", "finding")), ("concepts_manual", ("modality",))):
        rows = [(image_id, _cuis(phantom, facts)) for image_id, phantom in phantoms.items()]
        _write_csv(folder / f"{split}_{name}.csv", ("ID", "CUIs"), rows)
    truth = {image_id: _facts(phantom) for image_id, phantom in phantoms.items()}
    (folder / f"{split}_findings.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / f"{split}_images.zip", "w", zipfile.ZIP_STORED) as archive:
        for image_id, phantom in phantoms.items():
            extension, content = _encode(phantom, rng)
            archive.writestr(zipfile.ZipInfo(f"{split}/{image_id}{extension}", ZIP_DATE), content)
            bar.update()
    return list(phantoms)


def _facts(phantom: Phantom) -> dict[str, Any]:
    """Return the facts of one image as they are written to JSON."""
    finding = {key: getattr(phantom, key) for key in ("finding", "side", "level", "size", "diameter_cm")}
    return {"modality": phantom.modality, "findings": [finding] if phantom.finding else []}


def _cuis(phantom: Phantom, facts: Sequence[str]) -> str:
    return ";".join(UMLS_CONCEPTS[value][0] for fact in facts if (value := getattr(phantom, fact)))


def _encode(phantom: Phantom, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return extension and bytes of an image file: a gray or RGB JPEG, 2 % of them a 16-bit PNG."""
    height, width = (int(length) for length in rng.integers(112, 161, 2))
    plane, choice, buffer = draw(phantom, rng, height, width), rng.random(), io.BytesIO()
    if choice < 0.02:
        Image.fromarray((plane * 40000).astype(np.uint16)).save(buffer, "PNG")
        return ".png", buffer.getvalue()
    image = Image.fromarray((plane * 255).astype(np.uint8))
    (image.convert("RGB") if choice < 0.3 else image).save(buffer, "JPEG", quality=92)
    return ".jpg", buffer.getvalue()


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)
