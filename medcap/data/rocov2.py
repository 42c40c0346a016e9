"""Read ROCOv2 in the layout of Zenodo record 10821435, without decoding images."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from datasets import Dataset, NamedSplit

from medcap.data import SPLITS
from medcap.data.concepts import split_cuis
from medcap.data.images import index_images
from medcap.data.licenses import Source, read_sources
from medcap.data.paths import check_inside, nfc
from medcap.data.selection import FEATURES
from medcap.data.tables import read_column

logger = logging.getLogger(__name__)


def read_rocov2(
    folder: str | os.PathLike[str],
    splits: Sequence[str] = (),
    other_splits: bool = True,
    allow_outside: bool = False,
) -> dict[str, Dataset]:
    """Return the raw rows of `splits`: the columns of `FEATURES`, unchanged captions, None for a missing image.

    Files: `{split}_captions.csv`; optional `{split}_concepts.csv`, `{split}_concepts_manual.csv` and
    `license_information.csv`; images in `{split}_images.zip`, `{split}_images/{split}/`, `{split}_images/` or
    `{split}/`. The valid split may be named validation.

    Args:
        folder: Folder of the files.
        splits: Splits that must have images.
        other_splits: Whether to return the other splits too; their images may be missing.
        allow_outside: Whether links to images outside the folder are followed.

    Raises:
        ValueError: A split or its images are missing, or a file is invalid.
    """
    folder = Path(folder)
    others = [split for split in SPLITS if other_splits and _find(folder, split, "captions.csv")]
    return {
        split: _read_split(folder, split, split in splits, allow_outside)
        for split in dict.fromkeys([*splits, *others])
    }


def _read_split(folder: Path, split: str, needs_images: bool, allow_outside: bool) -> Dataset:
    path = _find(folder, split, "captions.csv")
    if path is None:
        available = sorted(path.name.removesuffix("_captions.csv") for path in folder.glob("*_captions.csv"))
        raise ValueError(f"no split {split!r} in {folder}: no {split}_captions.csv; found: {', '.join(available)}")
    captions = read_column(path, "Caption")
    if not captions:
        raise ValueError(f"{path}: there is no row")
    images, sources = _find_images(folder, split, needs_images), read_sources(folder)
    if not allow_outside:
        check_inside(images.values(), folder)
    images = {**{nfc(name): image for name, image in images.items()}, **images}
    if needs_images and not any(image_id in images or nfc(image_id) in images for image_id in captions):
        raise ValueError(f"no image of {folder} has an id of {path.name}: {_examples(images, captions)}")
    sources_of_rows = [sources.get(image_id, Source()) for image_id in captions]
    columns = {
        "image_id": list(captions),
        "image": [images.get(image_id, images.get(nfc(image_id))) for image_id in captions],
        "caption": list(captions.values()),
        "cuis": _concepts(folder, split, "concepts.csv", captions),
        "manual_cuis": _concepts(folder, split, "concepts_manual.csv", captions),
        "group": [source.group for source in sources_of_rows],
        "license": [source.license for source in sources_of_rows],
    }
    return Dataset.from_dict(columns, features=FEATURES, split=NamedSplit(split))


def _concepts(folder: Path, split: str, suffix: str, ids: Collection[str]) -> list[list[str]]:
    path = _find(folder, split, suffix)
    cells = read_column(path, "CUIs") if path else {}
    if cells and not any(image_id in cells for image_id in ids):
        logger.warning("%s is not used: none of its ids has a caption: %s", path, _examples(cells, ids))
    return [split_cuis(cells.get(image_id)) for image_id in ids]


def _examples(names: Iterable[str], ids: Iterable[str]) -> str:
    return f"it has {', '.join([*names][:3])}; the captions have {', '.join([*ids][:3])}"


def _find(folder: Path, split: str, suffix: str) -> Path | None:
    paths = (folder / f"{name}_{suffix}" for name in _names(split))
    return next((path for path in paths if path.is_file()), None)


def _find_images(folder: Path, split: str, required: bool) -> dict[str, str]:
    """Return {id: absolute path or zip:// URL}."""
    for name in _names(split):
        archive = folder / f"{name}_images.zip"
        if archive.is_file():
            return index_images(archive)
        for subfolder in (folder / f"{name}_images" / name, folder / f"{name}_images", folder / name):
            if subfolder.is_dir() and (images := index_images(subfolder)):
                return images
    if not required:
        return {}
    raise ValueError(
        f"no images of split {split!r} in {folder}: expected {split}_images.zip, {split}_images/{split}/, "
        f"{split}_images/ or {split}/"
    )


def _names(split: str) -> tuple[str, ...]:
    return ("valid", "validation") if split == "valid" else (split,)
