"""Baselines that need no model: the best constant caption, and captions of other images.

A captioner whose output depends on the image must score above both.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from medcap.metrics.coco import tokenize
from medcap.metrics.ngrams import Floats, Ints, TfIdf, count_ngrams, length_penalty, mean_cider_d, tf_idf

T = TypeVar("T")


def constant_caption(captions: Sequence[str], candidates: int = 20) -> str:
    """Return the caption with the highest mean CIDEr-D against every caption as a reference; ties by text.

    Scoring every caption takes quadratic time. The mean cosine of a caption with all captions takes linear time, as
    its dot product with the sum of their unit vectors; times the mean length penalty, it selects `candidates` captions
    with different tokens, which are scored exactly. 60,000 captions of 25 words take about ten seconds and 1 GB.

    Raises:
        ValueError: No caption has a word, `captions` is a text, or `candidates` is less than 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    texts = tokenize(captions)
    rows = _distinct(captions, texts)
    if not rows:
        raise ValueError(f"none of the {len(captions)} captions has a word")
    words = np.array([len(text.split()) for text in texts])
    image, everything = np.arange(len(texts)), np.ones(len(texts), bool)
    orders = [tf_idf(counts, image, everything) for counts in count_ngrams(" ".join(texts).split(), words)]
    lengths = np.maximum(words - 1, 0)  # in bigrams, as in pycocoevalcap
    estimate = _mean_cosine(orders) * _mean_penalty(lengths)
    # rounded, because the order of a sum changes its last digits, which would decide between equal captions
    shortlist = sorted(rows, key=lambda row: (-round(float(estimate[row]), 9), captions[row]))[:candidates]
    exact = {row: mean_cider_d(orders, lengths, row) for row in shortlist}
    return captions[min(exact, key=lambda row: (-round(exact[row], 9), captions[row]))]


def shuffled(references: Sequence[T], seed: int = 0) -> list[T]:
    """Return the references in another order, in which no image has its own.

    The images form one random cycle, and each gets the reference of the next; a random permutation keeps one image in
    its place on average. Two images with equal references may swap them.

    Raises:
        ValueError: There are fewer than two references.
    """
    if isinstance(references, str) or len(references) < 2:
        raise ValueError(f"shuffling needs a list of at least two references, got {references!r}")
    cycle = list(range(len(references)))
    random.Random(seed).shuffle(cycle)
    source = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [references[source[image]] for image in range(len(references))]


def _distinct(captions: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Return one row per different text of tokens, the first by caption; rows without tokens are left out."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text and (text not in first or captions[row] < captions[first[text]]):
            first[text] = row
    return list(first.values())


def _mean_cosine(orders: Sequence[TfIdf]) -> Floats:
    """Return (captions,) the mean cosine of each caption with all captions, itself included: 0 to 1."""
    captions = len(orders[0].norm)
    total = np.zeros(captions)
    for vectors in orders:
        unit = vectors.weight / np.where(vectors.norm > 0, vectors.norm, 1.0)[vectors.caption]
        summed = np.bincount(vectors.gram, unit)  # (n-grams,)
        total += np.bincount(vectors.caption, unit * summed[vectors.gram], minlength=captions)
    return total / (len(orders) * captions)


def _mean_penalty(lengths: Ints) -> Floats:
    """Return (captions,) the mean length penalty of each caption against all captions: 0 to 1."""
    values, row, count = np.unique(lengths, return_inverse=True, return_counts=True)
    return (length_penalty(values[:, None] - values) @ count / len(lengths))[row]
