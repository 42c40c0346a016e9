"""`report.html`: one evaluation as one self-contained page."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from markupsafe import Markup, escape

from medcap.evaluation.baselines import LEGEND
from medcap.evaluation.evaluate import Evaluation
from medcap.evaluation.verdict import RULE, verdict
from medcap.io import write_text
from medcap.metrics.clinical.accuracy import LATERALITIES
from medcap.reporting.pages import render, thumbnail
from medcap.reporting.tables import TITLES

BEST, RANDOM = 12, 24  # number of images


def write_page(path: Path, evaluation: Evaluation, rows: Dataset) -> None:
    """Write the page of an evaluation: verdict, scores with intervals, parts, facts, images, and all captions.

    `rows` are images and references in the order of the captions. Only images that are shown are decoded.
    """
    result, captions = evaluation.result, evaluation.captions
    columns = (rows["image_id"][:], rows["caption"][:], captions, evaluation.per_image["cider"])
    maxima = {
        name: max(1.05 * row.intervals[name][1] for row in result.rows) or 1.0
        for name in ("cider", "rouge_l", "bleu_4", "meteor")
    }
    text = render(
        "evaluation_page.html",
        script="evaluation_page.js",
        result=result,
        verdict=verdict(result),
        rule=RULE,
        legend=LEGEND,
        titles=TITLES,
        plots=maxima,
        sides=LATERALITIES,
        images=_images(rows, captions, evaluation.per_image),
        table=[[*texts, round(cider, 3)] for *texts, cider in zip(*columns, strict=True)],
    )
    write_text(path, text)


def _images(
    rows: Dataset, captions: Sequence[str], per_image: Mapping[str, Sequence[float]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the best and worst images by CIDEr, and random ones, with captions; each is decoded once."""
    cider, rouge_l = per_image["cider"], per_image["rouge_l"]
    order = sorted(range(len(captions)), key=lambda row: (-cider[row], -rouge_l[row], row))
    sample = sorted(random.Random(0).sample(order, min(RANDOM, len(order))))
    chosen = {"Best by CIDEr": order[:BEST], "Worst by CIDEr": order[::-1][:BEST], "Random images": sample}
    cards = {}
    for row in {row for part in chosen.values() for row in part}:
        reference, prediction = marked(rows[row]["caption"], captions[row])
        cards[row] = {
            "image_id": rows[row]["image_id"], "source": thumbnail(rows[row]["image"]), "reference": reference,
            "prediction": prediction, "cider": cider[row], "rouge_l": rouge_l[row],
        }  # fmt: skip
    return {title: [cards[row] for row in part] for title, part in chosen.items()}


def marked(reference: str, prediction: str) -> tuple[Markup, Markup]:
    """Return both as HTML, with `<del>` around words of the reference only, `<ins>` around words of the prediction."""
    expected, predicted = reference.split(), prediction.split()
    bare, other = ([word.strip(".,;:()[]\"'").lower() for word in words] for words in (expected, predicted))
    left, right = [], []
    for kind, start, end, first, last in difflib.SequenceMatcher(None, bare, other, autojunk=False).get_opcodes():
        left += _tagged(expected[start:end], "del", kind)
        right += _tagged(predicted[first:last], "ins", kind)
    return Markup(" ").join(left), Markup(" ").join(right)


def _tagged(words: Sequence[str], tag: str, kind: str) -> list[Markup]:
    text = escape(" ".join(words))
    return [text if kind == "equal" else Markup(f"<{tag}>{text}</{tag}>")] if words else []
