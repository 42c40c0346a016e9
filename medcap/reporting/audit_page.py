"""Report of a data audit: JSON file, HTML page, and text for the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Image

from medcap import hub
from medcap.data.audit import LIMITS, audit
from medcap.data.concepts import concept_names
from medcap.data.duplicates import MAX_DISTANCE
from medcap.data.layout import DataLayout
from medcap.data.load import read_data
from medcap.data.sources import DataPaths, source_paths
from medcap.io import write_json, write_text
from medcap.logs import error_line
from medcap.reporting.pages import render, thumbnail
from medcap.reporting.tables import aligned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BLIP = "Salesforce/blip-image-captioning-base"
SHOWN = 40  # groups of duplicates, sources and broken images; the JSON file has all
DISTRIBUTIONS = {
    "Modality, from manual concepts": "modality_by_concepts",
    "Modality, from the caption": "modality_by_text",
    "Body region, from manual concepts": "region_by_concepts",
    "Licenses": "licenses",
}


def write_audit(
    data: DataPaths,
    out: Path,
    tokenizer: str | None = None,
    limits: Sequence[int] = LIMITS,
    num_proc: int | None = None,
    layout: DataLayout | None = None,
) -> dict[str, Any]:
    """Audit a data set and write the report to `out` (JSON) and to an HTML page next to it.

    Args:
        data: Folder, CSV file, or Hub name, or several.
        out: The JSON file.
        tokenizer: Folder or Hub name; None for that of BLIP.
        limits: Values of `max_caption_tokens` for which truncated captions are counted.
        num_proc: Number of processes that decode images; None for one per core.
        layout: Layout of the data; None to detect it.

    Returns:
        The report, see `audit`.
    """
    raw = read_data(data, layout)
    report = audit(raw, concept_names(data), load_tokenizer(tokenizer), limits, num_proc)
    html = page(report, raw, ", ".join(source_paths(data)))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)
    write_text(out.with_suffix(".html"), html)
    return report


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer `name`; for None that of BLIP from the cache or the Hub, or None if it is unavailable."""
    from transformers import AutoTokenizer

    if name is not None:
        try:
            folder = name if Path(name).is_dir() else hub.snapshot(name, None, hub.SMALL_FILES)
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # an invalid file may raise anything
            raise ValueError(f"{name} has no readable tokenizer: {error_line(error)}") from error
    try:
        return AutoTokenizer.from_pretrained(hub.snapshot(BLIP, None, hub.SMALL_FILES), trust_remote_code=False)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be fetched (%s): tokens are not counted; --tokenizer takes a folder", BLIP, error)
    return None


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return statements to read before training; `bad` marks problems."""
    parts, images, dropped = report["splits"], report["similar_images"], report["dropped_by"]
    crossing = len(report["groups_across_splits"])
    has_groups = any(part["groups"]["rows"] for part in parts.values())
    has_licenses = any(set(part["licenses"]) - {"unknown"} for part in parts.values())
    lines: list[tuple[str, Any]] = [
        ("rows: " + ", ".join(f"{part['rows']:,} {split}" for split, part in parts.items()), False)
    ]
    for title, key in (
        ("missing images", "missing_images"),
        ("images that cannot be read", "broken_images"),
        ("blank captions", "blank_captions"),
    ):
        n = sum(len(part[key]) for part in parts.values())
        lines.append((f"{title}: {n:,}", n))
    if has_groups:
        lines.append((f"articles, patients or cases in more than one split: {crossing:,}", crossing))
    else:
        text = "articles, patients and cases are unknown: not checked whether any is in more than one split"
        lines.append((text, True))
    for title, key in (("across splits", "across_splits"), ("within a split", "within_a_split")):
        same, near = images["same_pixels"][key], images["near_duplicates"][key]
        lines.append((f"images {title}: {same:,} groups with the same pixels, {near:,} nearly the same", same + near))
    if any(part["sources"] for part in parts.values()):
        shared = images["across_sources"]
        lines.append((f"images of one source that are also in another, or nearly: {shared:,} groups", shared))
    options = {"exclude_leaks": "exclude_leaks", "dedupe": "dedupe"}
    if has_licenses:
        options["license_filter"] = "license_filter commercial"
    for key, option in options.items():
        counts = ", ".join(f"{n:,} of {split}" for split, n in dropped[key].items())
        lines.append((f"{option} would leave out {counts}", sum(dropped[key].values())))
    if not has_licenses:
        lines.append(("licenses of single images are not known", True))
    return [{"text": text, "bad": bool(bad)} for text, bad in lines]


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of splits: title, and a cell for each split."""
    parts = list(report["splits"].values())
    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "rows": lambda part: f"{part['rows']:,}",
        "blank captions": lambda part: f"{len(part['blank_captions']):,}",
        "missing images": lambda part: f"{len(part['missing_images']):,}",
        "unreadable images": lambda part: f"{len(part['broken_images']):,}",
        "width, median (min to max)": lambda part: _range(part["pixels"]["width"]),
        "height, median (min to max)": lambda part: _range(part["pixels"]["height"]),
        "words, mean": lambda part: f"{part['words'].get('mean', 0):.1f}",
        "words, median (min to max)": lambda part: _range(part["words"]),
        "captions of several images": lambda part: f"{part['repeated_captions']['captions']:,}",
        "images with such a caption": lambda part: f"{part['repeated_captions']['rows']:,}",
        "articles, patients or cases": lambda part: f"{part['groups']['distinct']:,}",
    }
    if all(part["tokens"] for part in parts):
        cells["tokens, median (min to max)"] = lambda part: _range(part["tokens"])
        for limit in parts[0]["tokens"]["truncated"]:
            cells[f"cut by max_caption_tokens {limit}"] = partial(_cut, limit)
    return [[title, *map(cell, parts)] for title, cell in cells.items()]


def _range(spread: Mapping[str, Any]) -> str:
    return f"{spread['median']:g} ({spread['min']} to {spread['max']})" if spread["n"] else "none"


def _cut(limit: str, part: Mapping[str, Any]) -> str:
    n = part["tokens"]["truncated"][limit]
    return f"{n:,} ({n / part['tokens']['n']:.1%})"


def summary(report: Mapping[str, Any]) -> str:
    """Return the report as text for the terminal: statements, and the table of splits."""
    statements = [("! " if verdict["bad"] else "  ") + verdict["text"] for verdict in verdicts(report)]
    return "\n".join([*statements, "", *aligned([["", *report["splits"]], *table(report)])])


def page(report: Mapping[str, Any], raw: Mapping[str, Dataset], name: str) -> str:
    """Return one self-contained HTML page with the images of the first groups of duplicates."""
    splits = report["splits"]
    images = {split: rows.cast_column("image", Image(decode=False)) for split, rows in raw.items()}
    row_of = {split: {image_id: row for row, image_id in enumerate(rows["image_id"])} for split, rows in raw.items()}
    return render(
        "audit_page.html",
        name=name,
        report=report,
        splits=splits,
        verdicts=verdicts(report),
        table=table(report),
        distributions={
            title: key
            for title, key in DISTRIBUTIONS.items()
            if any(set(part[key]) - {"unknown"} for part in splits.values())
        },
        concepts=list(report["concepts"].items())[:25],
        broken=[item for part in splits.values() for item in part["broken_images"].items()][:SHOWN],
        across=list(report["groups_across_splits"].items())[:SHOWN],
        has_groups=any(part["groups"]["rows"] for part in splits.values()),
        groups=report["similar_images"]["groups"][:SHOWN],
        max_distance=MAX_DISTANCE,
        thumbnail=lambda split, image_id: thumbnail(images[split][row_of[split][image_id]]["image"]),
    )
