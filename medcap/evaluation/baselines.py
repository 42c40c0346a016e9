"""Captions that need no training, to read a model's scores against: the best constant, and another image's caption.

A captioner whose output depends on the image must score above both. The constant uses the data set but not the image;
the shuffled references are human captions of other images.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medcap.metrics.coco import tokenize

# CIDEr-D (Vedantam et al. 2015, section 7) as in pycocoevalcap/cider/cider_scorer.py
_ORDERS = 4
_SIGMA = 6.0

T = TypeVar("T")


def constant_caption(captions: Sequence[str], candidates: int = 20) -> str:
    """Return the training caption with the highest mean CIDEr-D against every training caption as a reference.

    Trying each caption is quadratic. Plain CIDEr is not: the mean cosine of a caption with all the others is its dot
    product with the sum of their unit vectors. That, times the caption's mean length penalty, picks a shortlist of
    `candidates` captions of different tokens; those are scored exactly: idf and mean over all `captions`, no sample.
    The winner is one of `captions` as it stands. Of equals the first by text wins.
    Time and memory are linear in the words: 60,000 captions of 25 words take about ten seconds and 1 GB.
    ValueError for a text instead of a list, captions without any word, fewer than one candidate.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    texts = tokenize(captions)
    words = [text.split() for text in texts]
    rows = _distinct(captions, texts)
    if not rows:
        raise ValueError(f"none of the {len(captions)} captions has a word")
    lengths = np.array([max(len(tokens) - 1, 0) for tokens in words])  # in bigrams, as pycocoevalcap counts
    orders = [_tf_idf(*gram) for gram in _ngrams(words)]
    near = _mean_cosine(orders, len(words)) * _mean_penalty(lengths)
    # rounded, for a sum's last bits depend on its order and would break a tie before the text does
    shortlist = sorted(rows, key=lambda row: (-round(float(near[row]), 9), captions[row]))[:candidates]
    exact = {row: _mean_cider_d(orders, lengths, row) for row in shortlist}
    return captions[min(exact, key=lambda row: (-round(exact[row], 9), captions[row]))]


def shuffled(references: Sequence[T], seed: int = 0) -> list[T]:
    """Return n captions of which the i-th is the reference of another image than the i-th, each used once.

    The images are put in one random circle and each takes its neighbour's caption, so that none keeps its own (a
    plain shuffle leaves one image its own on average). By position: two images of equal captions may swap them.
    ValueError for fewer than two references, for then there is no other image.
    """
    if isinstance(references, str) or len(references) < 2:
        raise ValueError(f"shuffling needs a list of at least two references, got {references!r}")
    circle = list(range(len(references)))
    random.Random(seed).shuffle(circle)
    giver = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [references[giver[image]] for image in range(len(references))]


@dataclass(frozen=True)
class _Order:
    """The tf-idf vectors of all captions for n-grams of one length, as entries (caption, n-gram, weight)."""

    caption: NDArray[np.int64]  # (entries,) ascending
    gram: NDArray[np.int64]  # (entries,) 0 .. n-grams - 1
    weight: NDArray[np.float64]  # (entries,) term frequency times idf
    norm: NDArray[np.float64]  # (captions,) length of each vector; 1 instead of 0, where all weights are 0


def _distinct(captions: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Return one row per different text of tokens, the first by caption; rows without tokens are left out."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text and (text not in first or captions[row] < captions[first[text]]):
            first[text] = row
    return list(first.values())


def _ngrams(words: list[list[str]]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Yield, for n = 1 to 4, the caption and the number of each n-gram in the text, and how many captions there are.

    An n-gram is numbered by the pair (number of its first n - 1 words, its last word): arrays of whole numbers in
    the place of millions of tuples of words.
    """
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(token, len(numbers)) for tokens in words for token in tokens], np.int64)
    caption = np.repeat(np.arange(len(words)), [len(tokens) for tokens in words])
    gram = word
    for n in range(1, _ORDERS + 1):
        if n > 1:
            inside = caption[: 1 - n] == caption[n - 1 :]  # (words - n + 1,) the n words are of one caption
            pair = (gram * len(numbers))[:-1] + word[n - 1 :]
            gram = np.full(len(pair), -1)
            gram[inside] = np.unique(pair[inside], return_inverse=True)[1]
        here = gram >= 0
        yield caption[: len(gram)][here], gram[here], len(words)


def _tf_idf(caption: NDArray[np.int64], gram: NDArray[np.int64], captions: int) -> _Order:
    """Count and weigh the n-grams; idf = log(captions / captions that have the n-gram)."""
    grams = int(gram.max(initial=0)) + 1
    entry, count = np.unique(caption * grams + gram, return_counts=True)
    caption, gram = np.divmod(entry, grams)
    having = np.bincount(gram, minlength=grams)  # (n-grams,)
    weight = count * (np.log(captions) - np.log(np.maximum(having, 1)))[gram]
    norm = np.sqrt(np.bincount(caption, weight**2, minlength=captions))
    return _Order(caption, gram, weight, np.where(norm > 0, norm, 1.0))


def _mean_cosine(orders: list[_Order], captions: int) -> NDArray[np.float64]:
    """Return (captions,) each caption's mean cosine with all captions, itself included, over the orders: 0 to 1."""
    total = np.zeros(captions)
    for order in orders:
        unit = order.weight / order.norm[order.caption]
        summed = np.bincount(order.gram, unit)  # (n-grams,)
        total += np.bincount(order.caption, unit * summed[order.gram], minlength=captions)
    return total / (len(orders) * captions)


def _mean_penalty(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (captions,) each caption's mean Gaussian length penalty against all captions: 0 to 1."""
    values, row, count = np.unique(lengths, return_inverse=True, return_counts=True)
    penalty = np.exp(-((values[:, None] - values) ** 2) / (2 * _SIGMA**2))  # (different lengths, different lengths)
    return (penalty @ count / len(lengths))[row]


def _mean_cider_d(orders: list[_Order], lengths: NDArray[np.int64], row: int) -> float:
    """Return caption `row`'s mean CIDEr-D with each caption in turn as the one reference: 0 to 10."""
    total = np.zeros(len(lengths))
    for order in orders:
        mine = np.zeros(int(order.gram.max(initial=0)) + 1)  # (n-grams,)
        own = slice(*np.searchsorted(order.caption, [row, row + 1]))
        mine[order.gram[own]] = order.weight[own]
        clipped = np.minimum(mine[order.gram], order.weight) * order.weight
        total += np.bincount(order.caption, clipped, minlength=len(lengths)) / (order.norm * order.norm[row])
    penalty = np.exp(-((lengths - lengths[row]) ** 2) / (2 * _SIGMA**2))
    return float(10.0 * np.mean(total * penalty) / len(orders))
