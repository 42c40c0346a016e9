"""The scores of one set of captions: metrics with their intervals, per modality and length, and what was said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig

from medcap.data.selection import fingerprint
from medcap.evaluation.split import Split
from medcap.metrics.clinical.accuracy import score_facts
from medcap.metrics.clinical.concept_f1 import concept_f1
from medcap.metrics.coco import METRICS, Meteor, Scores, score_captions
from medcap.metrics.statistics import Statistics, bootstrap, paired_test
from medcap.modeling.precision import precision_name
from medcap.phantom.truth import findings_accuracy

LENGTHS = ((1, 10), (11, 20), (21, 40), (41, None))  # words of a reference, both ends counted
SIGNIFICANT = 0.05
HARDLY = 0.1  # a CIDEr that loses less than this share of itself on wrong pictures hardly falls


def score_split(
    captions: Sequence[str], split: Split, meteor: Meteor, extra: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], Scores]:
    """Return `n`, `metrics`, 95 % `intervals`, `signature`, and on phantoms `findings`; and the scores they are of.

    Intervals are resampled by `split.groups`. `extra` goes into the signature.
    """
    scores = score_captions(captions, [[reference] for reference in split.references], meteor=meteor, extra=extra)
    result: dict[str, Any] = {
        "n": len(captions),
        "metrics": scores.metrics,
        "intervals": _listed(bootstrap(scores.statistics, split.groups)),
        "signature": scores.signature,
    }
    if split.truth is not None:
        result["findings"] = findings_accuracy(captions, split.ids, split.truth)
    return result, scores


def signature_pairs(
    split: str, rows: Dataset, settings: GenerationConfig, dtype: torch.dtype, restore: bool = True
) -> dict[str, object]:
    """What a signature says beyond the metrics: data, decoding, precision, surface."""
    return {
        "split": split,
        "data": fingerprint(rows),
        "decoding": f"beams-{settings.num_beams},max-{settings.max_new_tokens},ngram-{settings.no_repeat_ngram_size}",
        "precision": precision_name(dtype),
        "surface": "restored" if restore else "decoded",
    }


def factual_accuracy(captions: Sequence[str], split: Split) -> dict[str, Any]:
    """Return `facts` of the captions against those of the references, and `concepts` where the data names any."""
    said: dict[str, Any] = {"facts": score_facts(captions, split.references)}
    cuis = [list(own or []) for own in split.rows["cuis"]]
    if split.concepts and any(cuis):
        said["concepts"] = concept_f1(captions, cuis, split.concepts)
    return said


def breakdown(split: Split, statistics: Statistics) -> dict[str, list[dict[str, Any]]]:
    """Return the scores by modality of the image and by length of its reference, the most frequent value first.

    The idf of CIDEr is that of the whole split, so that the parts can be compared with the whole.
    """
    lengths = [_length(caption) for caption in split.references]
    return {
        "modality": _parts(split.modalities, split, statistics),
        "length": sorted(_parts(lengths, split, statistics), key=lambda part: int(part["value"].split(" ")[0])),
    }


def _parts(values: Sequence[str], split: Split, statistics: Statistics) -> list[dict[str, Any]]:
    names, counts = np.unique(values, return_counts=True)
    groups, parts = split.groups, []
    for name in names[np.argsort(-counts, kind="stable")]:
        rows = np.flatnonzero(np.array(values) == name)
        part = statistics.rows(rows)
        parts.append(
            {
                "value": str(name),
                "n": len(rows),
                "metrics": {metric: float(score[0]) for metric, score in part.corpus().items()},
                "intervals": _listed(bootstrap(part, [groups[row] for row in rows])),
            }
        )
    return parts


def _length(caption: str) -> str:
    words = max(len(caption.split()), 1)
    least, most = next((least, most) for least, most in LENGTHS if most is None or words <= most)
    return f"{least} to {most} words" if most else f"{least} words and more"


def image_dependence(right: Scores, wrong: Scores, groups: Sequence[str | None]) -> dict[str, Any]:
    """Return the paired `test` of captions of the right pictures against those of others, and whether the model looks.

    `looks` is whether CIDEr is significantly higher on the right pictures, by a tenth of itself or more.
    """
    test = paired_test(right.statistics, wrong.statistics, groups)
    fall = test["cider"]["difference"]
    return {"test": test, "looks": test["cider"]["p"] < SIGNIFICANT and fall >= HARDLY * right.metrics["cider"] > 0}


def _listed(intervals: Mapping[str, Iterable[float]]) -> dict[str, list[float]]:
    return {name: list(intervals[name]) for name in METRICS if name in intervals}
