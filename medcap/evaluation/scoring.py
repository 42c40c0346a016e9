"""Scores of one set of captions: metrics with intervals, by modality and length, with shuffled images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import GenerationConfig

from medcap.data.selection import fingerprint
from medcap.evaluation.baselines import shuffled
from medcap.evaluation.result import ImageDependence, PartScores, SystemScores
from medcap.evaluation.split import Split
from medcap.evaluation.verdict import depends_on_image
from medcap.metrics.clinical.concept_f1 import ConceptScores, concept_f1
from medcap.metrics.coco import Scores, score_captions
from medcap.metrics.statistics import Statistics, bootstrap, paired_test
from medcap.modeling.generation import extra_settings, rerank_settings
from medcap.phantom.truth import findings_accuracy

REFERENCE_LENGTHS = ((1, 10), (11, 20), (21, 40), (41, None))  # words, both ends included


def score(
    name: str, captions: Sequence[str], split: Split, extra: dict[str, object] | None = None
) -> tuple[SystemScores, Scores]:
    """Score one caption per image of `split`; intervals are resampled by `split.groups`.

    On phantoms, the correct findings are counted too. `extra` are more pairs for the signature.
    """
    scores = score_captions(captions, [[reference] for reference in split.references], extra=extra)
    system = SystemScores(
        name=name,
        n=len(captions),
        metrics=scores.metrics,
        intervals=bootstrap(scores.statistics, split.groups),
        findings=None if split.truth is None else findings_accuracy(captions, split.ids, split.truth),
    )
    return system, scores


def signature_pairs(
    split: str, rows: Dataset, settings: GenerationConfig, precision: str, detokenized: bool = True
) -> dict[str, object]:
    """Return the pairs of a signature beyond the metrics: split, data, decoding, precision, detokenization."""
    return {
        "split": split,
        "data": fingerprint(rows),
        "decoding": describe_decoding(settings),
        "precision": precision,
        "text": "detokenized" if detokenized else "decoded",
    }


def describe_decoding(settings: GenerationConfig) -> str:
    """Return beams, tokens and n-grams, and every other setting that changes captions; lists by their hash."""
    others = extra_settings(settings.to_dict())
    if settings.num_beams > 1 and settings.length_penalty != 1:
        others["length_penalty"] = settings.length_penalty
    if settings.min_new_tokens:
        others["min_new_tokens"] = settings.min_new_tokens
    texts = {name: str(value) for name, value in sorted(others.items())}
    short = {
        name: text if len(text) < 9 else hashlib.sha256(text.encode()).hexdigest()[:8] for name, text in texts.items()
    }
    parts = [f"beams-{settings.num_beams}", f"max-{settings.max_new_tokens}", f"ngram-{settings.no_repeat_ngram_size}"]
    return ",".join([*parts, *(f"{name}-{text}" for name, text in (short | rerank_settings(settings)).items())])


def score_concepts(captions: Sequence[str], split: Split) -> ConceptScores | None:
    """Return the concept F1; None if the data has no concepts."""
    cuis = [list(image or []) for image in split.rows["cuis"]]
    return concept_f1(captions, cuis, split.concepts) if split.concepts and any(cuis) else None


def breakdown(split: Split, statistics: Statistics) -> dict[str, list[PartScores]]:
    """Return the scores by modality (most frequent first), by length of the reference, and by source of several.

    CIDEr keeps the idf of the complete split, so that parts are comparable with each other and with the total.
    """
    lengths = [_length(caption) for caption in split.references]
    sources = {} if split.sources is None else {"source": _parts(split.sources, split, statistics)}
    return {
        **sources,
        "modality": _parts(split.modalities, split, statistics),
        "length": sorted(_parts(lengths, split, statistics), key=lambda part: int(part.value.split(" ")[0])),
    }


def _parts(values: Sequence[str], split: Split, statistics: Statistics) -> list[PartScores]:
    names, counts = np.unique(values, return_counts=True)
    groups, parts = split.groups, []
    for name in names[np.argsort(-counts, kind="stable")]:
        rows = np.flatnonzero(np.array(values) == name)
        part = statistics.rows(rows)
        metrics = {metric: float(scores[0]) for metric, scores in part.corpus().items()}
        intervals = bootstrap(part, [groups[row] for row in rows])
        parts.append(PartScores(value=str(name), n=len(rows), metrics=metrics, intervals=intervals))
    return parts


def _length(caption: str) -> str:
    words = max(len(caption.split()), 1)
    low, high = next((low, high) for low, high in REFERENCE_LENGTHS if high is None or words <= high)
    return f"{low} to {high} words" if high else f"{low} words and more"


def score_shuffled(captions: Sequence[str], split: Split, original: Scores) -> ImageDependence | None:
    """Shuffle `captions` among the images and compare with the `original` scores; None for a single image.

    A caption depends on its own image only: this equals captioning shuffled images. No image gets the caption of
    another image of its article or patient.
    """
    if len(captions) < 2:
        return None
    row, scores = score("shuffled images", shuffled(captions, split.groups), split)
    test = paired_test(original.statistics, scores.statistics, split.groups)
    depends = depends_on_image(original.metrics["cider"], test["cider"], split.groups)
    return ImageDependence(**vars(row), test=test, depends_on_image=depends)
