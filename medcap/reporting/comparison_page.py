"""`comparison.html`: the captions of several systems side by side, on one self-contained page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from tqdm import tqdm

from medcap.data.concepts import modality_in_words, modality_of, region_of
from medcap.data.layout import DataLayout
from medcap.data.load import load_data
from medcap.data.selection import Selection, fingerprint
from medcap.data.tables import read_column
from medcap.evaluation.compare import system_folders
from medcap.evaluation.csv_files import read_scores
from medcap.evaluation.folder import read_options
from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.io import unguard, write_text
from medcap.metrics.clinical.errors import ERROR_KINDS, errors_of
from medcap.metrics.clinical.facts import extract_facts
from medcap.reporting.pages import render, thumbnail
from medcap.reporting.tables import TITLES, differences_text

logger = logging.getLogger(__name__)

PAGE = 25  # images shown at a time; those of the first page come before the script


def read_rows(folder: Path, data: Sequence[str] | None, layout: DataLayout) -> Dataset | None:
    """Return the images and references of an evaluation, in the order of its scores.csv; None if unavailable.

    Args:
        folder: Folder of `medcap evaluate`.
        data: Its data; None for the paths that the evaluation recorded.
        layout: The layout of the data.

    Raises:
        ValueError: `data` is given and lacks an image, or has another reference than the evaluation.
        FileNotFoundError: `data` is given and does not exist.
    """
    recorded = read_options(folder).get("data")
    paths = list(data) if data is not None else recorded.split(", ") if recorded else None
    if paths is None:
        logger.warning("comparison.html has no images and references: name their folder with --data")
        return None
    try:
        return _rows_of(EvaluationResult.read(folder / "metrics.json"), folder, paths, layout)
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        logger.warning("comparison.html has no images and references (%s): name their folder with --data", error)
        return None


def _rows_of(result: EvaluationResult, folder: Path, paths: Sequence[str], layout: DataLayout) -> Dataset:
    rows = load_data(paths[0] if len(paths) == 1 else paths, layout, Selection(max_broken=1.0), [result.split])
    split = rows[result.split]
    numbers = {image_id: row for row, image_id in enumerate(split["image_id"][:])}
    ids, _, _ = read_scores(folder / "scores.csv")
    if missing := [image_id for image_id in ids if image_id not in numbers]:
        raise ValueError(f"{len(missing)} images are not in {', '.join(paths)}, such as {missing[0]}")
    chosen = split.select([numbers[image_id] for image_id in ids])
    scored = result.signature.get("data") if result.signature else None
    if scored not in (None, fingerprint(chosen)):
        raise ValueError(f"{', '.join(paths)} has other references than those that were scored")
    return chosen


def write_comparison_page(path: Path, comparison: Comparison, folders: Sequence[Path], rows: Dataset | None) -> None:
    """Write the page of a comparison: scores, significant differences, and all captions side by side.

    Args:
        path: The HTML file.
        comparison: What `compare` returned.
        folders: The folders that were compared.
        rows: Images and references of the evaluated images; None if unavailable.
    """
    paths = system_folders(folders)
    ids, _, _ = read_scores(next(iter(paths.values())) / "scores.csv")
    references = None if rows is None else dict(zip(rows["image_id"][:], rows["caption"][:], strict=True))
    cells = [_cells(folder, ids, references) for folder in paths.values()]
    evaluated = [EvaluationResult.read(folder / "metrics.json").name for folder in folders]
    text = render(
        "comparison_page.html",
        script="comparison_page.js",
        comparison=comparison,
        titles=TITLES,
        differences=differences_text(comparison.tests).splitlines(),
        page=PAGE,
        images=[] if rows is None else _thumbnails(rows),
        data={
            "systems": [{"name": name, "shown": name in evaluated} for name in paths],
            "errors": ERROR_KINDS,
            "page": PAGE,
            "rows": [
                [image_id, *_facts(rows, row), [system[row] for system in cells]] for row, image_id in enumerate(ids)
            ],
        },
    )
    write_text(path, text)


def _cells(folder: Path, ids: Sequence[str], references: Mapping[str, str] | None) -> list[list[Any]]:
    """Return caption, CIDEr and positions in `ERROR_KINDS` of a system for each image."""
    captions = {
        unguard(key): unguard(text) for key, text in read_column(folder / "predictions.csv", "Caption").items()
    }
    own_ids, _, statistics = read_scores(folder / "scores.csv")
    cider = dict(zip(own_ids, statistics.per_image()["cider"].tolist(), strict=True))
    errors = {key: errors_of(captions[key], references[key]) if references else [] for key in ids}
    return [[captions[key], round(cider[key], 3), [ERROR_KINDS.index(kind) for kind in errors[key]]] for key in ids]


def _facts(rows: Dataset | None, number: int) -> tuple[str, str, list[str], list[str]]:
    """Return reference, modality, regions and findings of an image: by its manual concepts or its reference."""
    if rows is None:
        return "", "", [], []
    caption, cuis = rows[number]["caption"], rows[number]["manual_cuis"] or []
    facts = extract_facts(caption)
    regions = {region_of(cuis) or "", *facts["region"]} - {""}
    modality = modality_of(cuis) or modality_in_words(caption) or "unknown"
    return caption, modality, sorted(regions), sorted(facts["finding"])


def _thumbnails(rows: Dataset) -> list[str]:
    """Return the images as data URLs of WebP, about 6 kB each, decoded in one thread per core."""
    encoded = rows.cast_column("image", Image(decode=False)) if isinstance(rows.features["image"], Image) else rows
    with ThreadPoolExecutor() as pool:
        images = pool.map(lambda row: thumbnail(encoded[row]["image"], "webp", 60), range(len(rows)))
        return list(tqdm(images, total=len(rows), desc="images", unit="image", disable=len(rows) < 500))
