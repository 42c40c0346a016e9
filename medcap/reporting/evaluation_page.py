"""`report.html`: one evaluation as one self-contained page."""

from __future__ import annotations

import base64
import difflib
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from medcap.data.images import load_image
from medcap.evaluation.evaluate import Evaluation
from medcap.evaluation.result import SystemScores
from medcap.evaluation.verdict import verdict
from medcap.io import write_text
from medcap.metrics.clinical.accuracy import LATERALITIES
from medcap.metrics.statistics import METRICS
from medcap.reporting.tables import TITLES

TEMPLATE = Path(__file__).with_name("evaluation_page.html")
BEST, RANDOM = 12, 24


def write_page(path: Path, evaluation: Evaluation, rows: Dataset) -> None:
    """Write the page of an evaluation: verdict, scores with intervals, parts, facts, images, and all captions.

    Args:
        path: The HTML file.
        evaluation: The result with its captions and their scores.
        rows: Images and references, in the order of the captions. Only images that are shown are decoded.
    """
    jinja = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["interval"] = lambda pair: f"{pair[0]:.3f} to {pair[1]:.3f}"
    result, captions, per_image = evaluation.result, evaluation.captions, evaluation.per_image
    text = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        systems=result.rows,
        verdict=verdict(result),
        metrics=METRICS,
        titles=TITLES,
        plots=[_plot(result.rows, name) for name in ("cider", "rouge_l", "bleu_4", "meteor")],
        sides=LATERALITIES,
        images=_images(rows, captions, per_image),
        table=_json(rows, captions, per_image["cider"]),
    )
    write_text(path, text)


def _plot(systems: Sequence[SystemScores], metric: str) -> dict[str, Any]:
    """Return positions of the scores and intervals of one metric, in percent of the axis."""
    maximum = max(max(row.intervals[metric][1] for row in systems) * 1.05, 1e-9)
    bars = []
    for row in systems:
        at, low, high = (
            100 * min(max(value / maximum, 0), 1) for value in (row.metrics[metric], *row.intervals[metric])
        )
        bars.append({"name": row.name, "value": row.metrics[metric], "at": at, "low": low, "high": high})
    return {"title": TITLES[metric], "bars": bars}


def _images(
    rows: Dataset, captions: Sequence[str], per_image: Mapping[str, Sequence[float]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the best and the worst images by CIDEr, and random ones, with captions; each is decoded once."""
    order = sorted(range(len(captions)), key=lambda row: (-per_image["cider"][row], -per_image["rouge_l"][row], row))
    sample = sorted(random.Random(0).sample(range(len(captions)), min(RANDOM, len(captions))))
    chosen = {"The best by CIDEr": order[:BEST], "The worst by CIDEr": order[::-1][:BEST], "At random": sample}
    shown = {row: _card(rows[row], captions[row]) for picked in chosen.values() for row in picked}
    return [
        (
            title,
            [{**shown[row], "cider": per_image["cider"][row], "rouge_l": per_image["rouge_l"][row]} for row in part],
        )
        for title, part in chosen.items()
    ]


def _card(row: Mapping[str, Any], caption: str) -> dict[str, Any]:
    reference, prediction = marked(row["caption"], caption)
    image = load_image(row["image"])
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"image_id": row["image_id"], "source": source, "reference": reference, "prediction": prediction}


def marked(reference: str, prediction: str) -> tuple[Markup, Markup]:
    """Return both as HTML: `<del>` around words of the reference only, `<ins>` around words of the prediction only."""
    predicted, expected = prediction.split(), reference.split()
    match = difflib.SequenceMatcher(
        None, [_bare(word) for word in expected], [_bare(word) for word in predicted], False
    )
    left, right = [], []
    for kind, start, end, first, last in match.get_opcodes():
        tags = ("", "") if kind == "equal" else ("del", "ins")
        left += _tagged(expected[start:end], tags[0])
        right += _tagged(predicted[first:last], tags[1])
    return Markup(" ").join(left), Markup(" ").join(right)


def _tagged(words: Sequence[str], tag: str) -> list[Markup]:
    text = escape(" ".join(words))
    return [Markup(f"<{tag}>{text}</{tag}>") if tag else text] if words else []


def _bare(word: str) -> str:
    return word.strip(".,;:()[]\"'").lower()


def _json(rows: Dataset, captions: Sequence[str], scores: Sequence[float]) -> Markup:
    """Return all captions for the search, as JSON that cannot end the script element around it."""
    ids, references = rows["image_id"][:], rows["caption"][:]
    table = [[*row[:3], round(row[3], 3)] for row in zip(ids, references, captions, scores, strict=True)]
    text = json.dumps(table)  # all but ASCII is escaped, U+2028 too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
