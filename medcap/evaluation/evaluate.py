"""Evaluation of one captioner on one split: captions, scores, baselines beside them, and a page to look at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from medcap.data.captions import clean_caption
from medcap.data.formats import Format
from medcap.data.load import find_format, read_data
from medcap.data.selection import Selection, check_images, drop_counts, fingerprint, select_rows
from medcap.evaluation.baselines import constant_caption, shuffled
from medcap.evaluation.coco import Meteor, score_captions, signature
from medcap.evaluation.findings import findings_accuracy, read_truth
from medcap.evaluation.predictions import describe_captions, write_predictions
from medcap.evaluation.report import write_html
from medcap.inference import Captioner, caption_dataset
from medcap.training.run import environment, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The images and references of one split, and what is known about it beside them."""

    name: str
    rows: Dataset
    training_captions: Sequence[str] | None
    truth: dict[str, dict[str, Any]] | None

    @property
    def references(self) -> list[str]:
        """One reference per image, in order."""
        return list(self.rows["caption"])

    @property
    def ids(self) -> list[str]:
        """Image ids, in order."""
        return list(self.rows["image_id"])


def load_split(
    data: str,
    name: str,
    *,
    form: Format | None = None,
    wanted: Selection | None = None,
    max_eval_samples: int | None = None,
) -> Split:
    """Load the `wanted` rows of one split, every image of it decoded once; `data` and `form` as for `load_data`.

    The captions of the training split, all of them, come along for the constant baseline; its images may be missing.
    """
    form, wanted = form or Format(), wanted or Selection()
    raw = read_data(data, form, [name])
    sys.stderr.write(f"{data}: read as {find_format(data, form.data_format)}\n")
    rows = select_rows(raw if wanted.exclude_leaks else {name: raw[name]}, [name], wanted)[name]
    rows = check_images(rows.select(range(min(max_eval_samples or len(rows), len(rows)))), wanted.max_broken)
    return Split(name, rows, _training_captions(raw), read_truth(data, name))


def _training_captions(raw: Mapping[str, Dataset]) -> list[str] | None:
    if "train" not in raw:
        logger.warning("no constant caption as a baseline: there is no training split")
        return None
    captions = (clean_caption(caption or "") for caption in raw["train"]["caption"])
    return [caption for caption in captions if caption]


def evaluate(
    captioner: Captioner, split: Split, out: Path, *, name: str, batch_size: int = 16, baselines: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Caption and score `split`; writes metrics.json predictions.csv and report.html into `out`.

    Returns the content of metrics.json and the captions, in the order of the split.
    """
    captions, cut = caption_dataset(captioner, split.rows, batch_size=batch_size)
    described = {**describe_captions(captions), "cut_share": sum(cut) / len(cut)}
    with Meteor() as meteor:
        scores = scored(captions, split, meteor)
        rows = baseline_rows(split, meteor) if baselines else {}
    generation = captioner.generation
    decoding = f"beams-{generation.num_beams},max-{generation.max_new_tokens},ngram-{generation.no_repeat_ngram_size}"
    result = {
        "name": name,
        "model": captioner.adapter or captioner.base,
        "base": captioner.base,
        "split": split.name,
        "data": drop_counts(split.rows),
        "image_size": captioner.image_size,
        **scores,
        "signature": signature(
            len(captions), 1, False, split=split.name, data=fingerprint(split.rows), decoding=decoding
        ),
        "captions": described,
        "baselines": rows,
        "environment": environment(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.csv", dict(zip(split.ids, captions, strict=True)))
    write_json(out / "metrics.json", result)
    write_html(out / "report.html", result, split.rows, captions)
    return result, captions


def scored(captions: Sequence[str], split: Split, meteor: Meteor) -> dict[str, Any]:
    """`n`, COCO `metrics`, and on phantoms the share of facts named rightly (`findings`)."""
    scores = score_captions(captions, [[reference] for reference in split.references], meteor=meteor)
    result: dict[str, Any] = {"n": len(captions), "metrics": scores.metrics}
    if split.truth is not None:
        result["findings"] = findings_accuracy(captions, split.ids, split.truth)
    return result


def baseline_rows(split: Split, meteor: Meteor) -> dict[str, Any]:
    """What needs no model: the best constant caption of the training split, and references shuffled among images."""
    rows = {}
    if split.training_captions:
        constant = constant_caption(split.training_captions)
        rows["constant"] = {"caption": constant, **scored([constant] * len(split.rows), split, meteor)}
    if len(split.rows) > 1:
        rows["shuffled"] = scored(shuffled(split.references), split, meteor)
    return rows
