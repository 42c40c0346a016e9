"""An audit's report as lines to read and as one HTML page to look at."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Image
from jinja2 import Environment, StrictUndefined

from medcap.data.audit import LIMITS, audit
from medcap.data.concepts import concept_names
from medcap.data.images import load_image
from medcap.data.layout import DataLayout
from medcap.data.load import read_data
from medcap.io import write_text
from medcap.logs import error_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BLIP = "Salesforce/blip-image-captioning-base"
TEMPLATE = Path(__file__).with_name("audit_page.html")
SHOWN = 40  # groups of duplicates, sources and broken images; the JSON has all
_SHARES = (
    ("Modality, from the concepts curated by hand", "modality_by_concepts"),
    ("Modality, from the words of the caption", "modality_by_text"),
    ("Region of the body, from the concepts curated by hand", "region_by_concepts"),
    ("Licences", "licenses"),
)


def write_audit(
    data: str,
    out: Path,
    tokenizer: str | None = None,
    limits: Sequence[int] = LIMITS,
    num_proc: int | None = None,
    form: DataLayout | None = None,
) -> dict[str, Any]:
    """Audit a folder, or a data set on the Hub; write the report to `out` (JSON) and a page beside it (.html).

    `form`: how the data is laid out and split; None: as found.
    `tokenizer`: folder or Hub name; None: BLIP's, or none where it cannot be fetched, with a line that says so.
    Returns the report (see `audit`). Raises as `read_data`; images that are missing or broken are findings here.
    """
    raw = read_data(data, form)
    report = audit(raw, concept_names(data), load_tokenizer(tokenizer), limits, num_proc)
    texts = {
        out: json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        out.with_suffix(".html"): page(report, raw, data),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_text(path, text)
    return report


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer `name`; for None BLIP's, from the cache or the Hub, and None where neither has it."""
    from huggingface_hub import file_exists
    from transformers import AutoTokenizer

    if name is not None:
        try:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # whatever a file that is not what it should be leads to
            raise ValueError(f"{name}: no tokenizer that can be read: {error_line(error)}") from error
    try:
        return AutoTokenizer.from_pretrained(BLIP, local_files_only=True, trust_remote_code=False)
    except OSError:
        logger.debug("%s is not in the cache", BLIP)
    try:  # asked first, because from_pretrained repeats a call without an answer for most of a minute
        file_exists(BLIP, "vocab.txt")
        return AutoTokenizer.from_pretrained(BLIP, trust_remote_code=False)
    except Exception as error:  # of httpx, httpx2 or requests, as huggingface_hub's version has it
        logger.warning("%s cannot be fetched (%s): tokens are not counted; --tokenizer takes a folder", BLIP, error)
    return None


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is found, one {text, bad} each: what the reader has to know before training."""
    splits, images, drops = report["splits"], report["similar_images"], report["dropped_by"]
    faults = {
        title: sum(len(part[key]) for part in splits.values())
        for title, key in (
            ("missing images", "missing_images"),
            ("images that cannot be read", "broken_images"),
            ("blank captions", "blank_captions"),
        )
    }
    crossing = len(report["groups_across_splits"])
    has_groups = any(part["groups"]["rows"] for part in splits.values())
    has_licenses = any(set(part["licenses"]) - {"unknown"} for part in splits.values())
    lines = [
        ("rows: " + ", ".join(f"{part['rows']:,} {split}" for split, part in splits.items()), False),
        *((f"{title}: {n:,}", n) for title, n in faults.items()),
        (
            f"articles, patients or cases in more than one split: {crossing:,}"
            if has_groups
            else "articles, patients and cases are not known: whether any is in more than one split cannot be said",
            crossing or not has_groups,
        ),
        (f"images across splits: {_kinds(images, 'across_splits')}", _groups(images, "across_splits")),
        (f"images within a split: {_kinds(images, 'within_a_split')}", _groups(images, "within_a_split")),
        (f"exclude_leaks would leave out {_each(drops['exclude_leaks'])}", sum(drops["exclude_leaks"].values())),
        (f"dedupe would leave out {_each(drops['dedupe'])}", sum(drops["dedupe"].values())),
        (
            f"license_filter commercial would leave out {_each(drops['license_filter'])}"
            if has_licenses
            else "licences of single images are not known",
            not has_licenses or sum(drops["license_filter"].values()),
        ),
    ]
    return [{"text": text, "bad": bool(bad)} for text, bad in lines]


def _groups(images: Mapping[str, Any], where: str) -> int:
    return int(images["same_pixels"][where] + images["near_duplicates"][where])


def _kinds(images: Mapping[str, Any], where: str) -> str:
    same, near = images["same_pixels"][where], images["near_duplicates"][where]
    return f"{same:,} groups with the same pixels, {near:,} nearly the same"


def _each(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} of {split}" for split, n in counts.items())


def table(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of splits: title, and a cell for each split."""
    parts = list(report["splits"].values())

    def row(title: str, of: Any) -> tuple[str, list[str]]:
        return title, [of(part) for part in parts]

    lines = [
        row("rows", lambda part: f"{part['rows']:,}"),
        row("blank captions", lambda part: f"{len(part['blank_captions']):,}"),
        row("missing images", lambda part: f"{len(part['missing_images']):,}"),
        row("unreadable images", lambda part: f"{len(part['broken_images']):,}"),
        row("width, median (min to max)", lambda part: _range(part["pixels"]["width"])),
        row("height, median (min to max)", lambda part: _range(part["pixels"]["height"])),
        row("words, mean", lambda part: f"{part['words'].get('mean', 0):.1f}"),
        row("words, median (min to max)", lambda part: _range(part["words"])),
        row("different captions said of several images", lambda part: f"{part['repeated_captions']['captions']:,}"),
        row("images with such a caption", lambda part: f"{part['repeated_captions']['rows']:,}"),
        row("articles, patients or cases", lambda part: f"{part['groups']['distinct']:,}"),
    ]
    if all(part["tokens"] for part in parts):
        lines.append(row("tokens, median (min to max)", lambda part: _range(part["tokens"])))
        for limit in parts[0]["tokens"]["truncated"]:
            lines.append(row(f"cut by max_caption_tokens {limit}", lambda part, limit=limit: _cut(part, limit)))
    return lines


def _range(spread: Mapping[str, Any]) -> str:
    return f"{spread['median']:g} ({spread['min']} to {spread['max']})" if spread["n"] else "none"


def _cut(part: Mapping[str, Any], limit: str) -> str:
    n = part["tokens"]["truncated"][limit]
    return f"{n:,} ({n / part['tokens']['n']:.1%})"


def summary(report: Mapping[str, Any]) -> str:
    """Return the report as text for the terminal: what is found, and the table of splits."""
    rows = [("", list(report["splits"])), *table(report)]
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(report["splits"]))]
    first = max(len(title) for title, _ in rows)
    lines = [
        "  ".join([title.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))])
        for title, cells in rows
    ]
    found = [("! " if verdict["bad"] else "  ") + verdict["text"] for verdict in verdicts(report)]
    return "\n".join([*found, "", *lines])


def page(report: Mapping[str, Any], raw: Mapping[str, Dataset], name: str) -> str:
    """Return one self-contained HTML page; the images of the first groups are in it, everything is escaped."""
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    splits = report["splits"]
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        report=report,
        splits=splits,
        verdicts=verdicts(report),
        table=table(report),
        shares=[
            (title, key) for title, key in _SHARES if any(set(part[key]) - {"unknown"} for part in splits.values())
        ],
        concepts=list(report["concepts"].items())[:25],
        broken=[item for part in splits.values() for item in part["broken_images"].items()][:SHOWN],
        across=list(report["groups_across_splits"].items())[:SHOWN],
        grouped=any(part["groups"]["rows"] for part in splits.values()),
        groups=report["similar_images"]["groups"][:SHOWN],
        thumbnail=_Thumbnails(raw),
    )


class _Thumbnails:
    """Returns the image of a split's id as a data URL of at most 320 x 320 pixels."""

    def __init__(self, raw: Mapping[str, Dataset]) -> None:
        self.data = {split: rows.cast_column("image", Image(decode=False)) for split, rows in raw.items()}
        self.places = {split: {i: n for n, i in enumerate(rows["image_id"])} for split, rows in raw.items()}

    def __call__(self, split: str, image_id: str) -> str:
        image = load_image(self.data[split][self.places[split][image_id]]["image"])
        image.thumbnail((320, 320))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
