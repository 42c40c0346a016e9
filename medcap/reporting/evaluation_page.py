"""`report.html`: one evaluation as one page to look at, without a single file beside it."""

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
from medcap.io import write_text
from medcap.metrics.statistics import METRICS
from medcap.reporting.tables import TITLES

TEMPLATE = Path(__file__).with_name("evaluation_page.html")
BEST, RANDOM = 12, 24
SIDES = ("left", "right", "both", "none")
OTHERS = {"wrong_pictures": "wrong pictures", "restored": "surface restored"}


def write_page(
    path: Path,
    result: Mapping[str, Any],
    rows: Dataset,
    captions: Sequence[str],
    per_image: Mapping[str, Sequence[float]],
) -> None:
    """Write the page of a metrics.json: verdict, scores with intervals, parts, facts, pictures, and every caption.

    `rows` holds the references, in the order of `captions`; `per_image` n scores by metric. Only the pictures that
    are shown are decoded. Whatever comes from a file is escaped.
    """
    jinja = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["interval"] = lambda pair: f"{pair[0]:.3f} to {pair[1]:.3f}"
    systems = _systems(result)
    text = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        systems=systems,
        verdict=verdict(result),
        metrics=METRICS,
        titles=TITLES,
        plots=[_plot(systems, name) for name in ("cider", "rouge_l", "bleu_4", "meteor")],
        sides=SIDES,
        pictures=_pictures(rows, captions, per_image),
        table=_json(rows, captions, per_image["cider"]),
    )
    write_text(path, text)


def verdict(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what to know before the scores are believed, as pairs of "good", "unsure" or "bad" and a sentence."""
    mine = result["metrics"]["cider"]
    low, high = result["intervals"]["cider"]
    lines = []
    for name, row in result["baselines"].items():
        least, most = row["intervals"]["cider"]
        mark, how = ("good", "above") if low > most else ("bad", "below") if high < least else ("unsure", "beside")
        tail = "" if mark != "unsure" else "; the intervals overlap: see medcap compare for a test"
        lines.append((mark, f"CIDEr {mine:.3f} is {how} the baseline {name}, {row['metrics']['cider']:.3f}{tail}."))
    if wrong := result.get("wrong_pictures"):
        does = "looks at the pictures" if wrong["looks"] else "DOES NOT LOOK at the pictures"
        score = f"captions of other pictures score CIDEr {wrong['metrics']['cider']:.3f}, its own {mine:.3f}"
        lines.append(("good" if wrong["looks"] else "bad", f"The model {does}: {score}."))
    facts = result["facts"]
    if facts["one_side"]:
        share = facts["wrong_side"]
        line = (
            f"The side is wrong in {share:.1%} of the {facts['one_side']} captions that, as their reference, name one."
        )
        lines.append(("good" if share < 0.02 else "unsure" if share < 0.1 else "bad", line))
    return lines


def _systems(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = {**result["baselines"], **{title: result[key] for key, title in OTHERS.items() if key in result}}
    return [
        {**result, "caption": ""},
        *({"name": name, "caption": "", "of": None, **row} for name, row in rows.items()),
    ]


def _plot(systems: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Where dots and bars of one metric lie, in hundredths of the axis from 0 to a little above the highest bar."""
    highest = max(max(row["intervals"][metric][1] for row in systems) * 1.05, 1e-9)
    bars = []
    for row in systems:
        low, high = row["intervals"][metric]
        value = row["metrics"][metric]
        shares = [100 * min(max(number / highest, 0), 1) for number in (value, low, high)]
        bars.append({"name": row["name"], "value": value, "at": shares[0], "low": shares[1], "high": shares[2]})
    return {"title": TITLES[metric], "highest": highest, "bars": bars}


def _pictures(
    rows: Dataset, captions: Sequence[str], per_image: Mapping[str, Sequence[float]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The best and the worst images by CIDEr, and some at random, with their captions; none is decoded twice."""
    order = sorted(range(len(captions)), key=lambda row: (-per_image["cider"][row], -per_image["rouge_l"][row], row))
    some = sorted(random.Random(0).sample(range(len(captions)), min(RANDOM, len(captions))))
    chosen = {"The best by CIDEr": order[:BEST], "The worst by CIDEr": order[::-1][:BEST], "At random": some}
    shown = {row: _picture(rows[row], captions[row]) for picked in chosen.values() for row in picked}
    return [
        (
            title,
            [{**shown[row], "cider": per_image["cider"][row], "rouge_l": per_image["rouge_l"][row]} for row in part],
        )
        for title, part in chosen.items()
    ]


def _picture(row: Mapping[str, Any], caption: str) -> dict[str, Any]:
    reference, prediction = marked(row["caption"], caption)
    image = load_image(row["image"])
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"image_id": row["image_id"], "source": source, "reference": reference, "prediction": prediction}


def marked(reference: str, prediction: str) -> tuple[Markup, Markup]:
    """Return both as HTML: `<del>` round what the reference alone says, `<ins>` round what the prediction does."""
    said, there = prediction.split(), reference.split()
    match = difflib.SequenceMatcher(None, [_bare(word) for word in there], [_bare(word) for word in said], False)
    left, right = [], []
    for kind, start, end, first, last in match.get_opcodes():
        tags = ("", "") if kind == "equal" else ("del", "ins")
        left += _tagged(there[start:end], tags[0])
        right += _tagged(said[first:last], tags[1])
    return Markup(" ").join(left), Markup(" ").join(right)


def _tagged(words: Sequence[str], tag: str) -> list[Markup]:
    text = escape(" ".join(words))
    return [Markup(f"<{tag}>{text}</{tag}>") if tag else text] if words else []


def _bare(word: str) -> str:
    return word.strip(".,;:()[]\"'").lower()


def _json(rows: Dataset, captions: Sequence[str], scores: Sequence[float]) -> Markup:
    """All captions for the search, as JSON in which nothing can end the script that holds it."""
    ids, references = rows["image_id"][:], rows["caption"][:]
    table = [[*row[:3], round(row[3], 3)] for row in zip(ids, references, captions, scores, strict=True)]
    text = json.dumps(table)  # all but ASCII is escaped, U+2028 too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
