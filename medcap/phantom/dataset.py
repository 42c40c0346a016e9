"""A phantom data set: a small synthetic ROCOv2 whose findings are known, in the files that ROCOv2 comes in."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from medcap.io import commit_folder, staging_folder
from medcap.phantom.captions import caption_of
from medcap.phantom.images import Phantom, draw, random_phantom

# UMLS concepts of what is drawn (CUI, canonical name)
CONCEPTS = {
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
LICENCE = "made by medcap, Apache-2.0"
EPOCH = (2024, 1, 1, 0, 0, 0)  # of every zip entry, so that the same seed gives the same bytes


def write_phantom(out: Path, *, train: int, valid: int, test: int, seed: int = 0) -> None:
    """Write `train` + `valid` + `test` images into the folder `out`, new or empty; one seed, one set of bytes.

    Files as on Zenodo (record 10821435): zips with a top folder, CSVs with CRLF, concepts, `cui_mapping.csv`,
    `license_information.csv`. Beside them `{split}_findings.json` holds the truth: for each id modality, and for each
    finding its name, side, level, size and diameter in cm. Raises FileExistsError when `out` holds anything.
    """
    counts = {"train": train, "valid": valid, "test": test}
    if wrong := [f"{split} is {count}" for split, count in counts.items() if count < 1]:
        raise ValueError(f"{wrong[0]}: each split needs at least one image")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: take another folder, or remove it")
    part = staging_folder(out)
    licences = []
    with tqdm(total=sum(counts.values()), desc="drawing phantoms", unit="image") as bar:
        for number, (split, count) in enumerate(counts.items()):
            rows = _write_split(part, split, count, np.random.default_rng([seed, number]), bar)
            licences += [(image_id, "", LICENCE, "") for image_id in rows]
    _write_csv(part / "license_information.csv", ("ID", "PMCID", "Attribution", "Link"), licences)
    _write_csv(part / "cui_mapping.csv", ("CUI", "Canonical name"), CONCEPTS.values())
    commit_folder(part, out)


def _write_split(folder: Path, split: str, count: int, rng: np.random.Generator, bar: tqdm) -> list[str]:
    """Write zip, captions, concepts and findings of one split; returns its ids."""
    phantoms = {f"PHANTOM_{split}_{number:06d}": random_phantom(rng) for number in range(1, count + 1)}
    captions = [(image_id, caption_of(phantom, rng)) for image_id, phantom in phantoms.items()]
    _write_csv(folder / f"{split}_captions.csv", ("ID", "Caption"), captions)
    for name, concepts in (("concepts", _concepts), ("concepts_manual", _modality_concept)):
        rows = [(image_id, ";".join(concepts(phantom))) for image_id, phantom in phantoms.items()]
        _write_csv(folder / f"{split}_{name}.csv", ("ID", "CUIs"), rows)
    truth = {image_id: findings(phantom) for image_id, phantom in phantoms.items()}
    (folder / f"{split}_findings.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / f"{split}_images.zip", "w", zipfile.ZIP_STORED) as archive:
        for image_id, phantom in phantoms.items():
            name, content = _encode(phantom, rng)
            archive.writestr(zipfile.ZipInfo(f"{split}/{image_id}{name}", EPOCH), content)
            bar.update()
    return list(phantoms)


def findings(phantom: Phantom) -> dict[str, Any]:
    """Return the known facts of one image, as the JSON has them."""
    facts = asdict(phantom)
    finding = {key: facts[key] for key in ("finding", "side", "level", "size", "diameter_cm")}
    return {"modality": phantom.modality, "findings": [finding] if phantom.finding else []}


def _concepts(phantom: Phantom) -> list[str]:
    return [CONCEPTS[name][0] for name in (phantom.modality, phantom.finding) if name]


def _modality_concept(phantom: Phantom) -> list[str]:
    return [CONCEPTS[phantom.modality][0]]


def _encode(phantom: Phantom, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return file extension and bytes of an image: a grey or RGB JPEG, one in fifty a 16-bit PNG."""
    height, width = (int(side) for side in rng.integers(112, 161, 2))
    plane, kind = draw(phantom, rng, height, width), rng.random()
    if kind < 0.02:
        return ".png", _as_bytes(Image.fromarray((plane * 40000).astype(np.uint16)), "PNG")
    image = Image.fromarray((plane * 255).astype(np.uint8))
    return ".jpg", _as_bytes(image.convert("RGB") if kind < 0.3 else image, "JPEG", quality=92)


def _as_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)
