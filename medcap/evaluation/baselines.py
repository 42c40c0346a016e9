"""Baselines that need no model: the best constant caption, in all and by modality, and captions of other images.

A captioner whose output depends on the image must score above all of them.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medcap.evaluation.caption_vectors import CaptionVectors
from medcap.metrics.ngrams import Floats, Ints, cider_d_to_all, length_penalty

T = TypeVar("T")
LEGEND = {
    "constant": "one training caption for every image, chosen on the training split",
    "constant-modality": "one training caption per modality; it is told the modality of each image, from its concepts",
    "shuffled": "the reference of another image, of another article or patient if the data names them",
    "nearest": "the caption of the most similar training image, by features of the frozen vision encoder",
    "nearest-k": "of the captions of the most similar training images, the one most similar to the others",
}  # all baselines, in the order of the tables


def constant_captions(
    captions: Sequence[str],
    groups: Sequence[str | None] | None = None,
    modalities: Sequence[str | None] = (),
    candidates: int = 100,
) -> dict[str | None, str]:
    """Return the best constant caption for all images (key None) and for the images of each modality.

    The best caption has the highest CIDEr-D against the captions as references, each counted once per group (see
    `CaptionVectors`) and never against its own group: the mean minus its standard error, so that a caption that is
    like one other case, and like no more, is not chosen. Ties by text. The idf is that of all captions.

    Scoring every caption takes quadratic time. The mean cosine of a caption with the references takes linear time, as
    its dot product with the sum of their unit vectors; times the mean length penalty, it selects `candidates` captions
    with different tokens, which are scored exactly. 60,000 captions of 25 words and six modalities take about 40
    seconds and 1 GB.

    Args:
        captions: Captions of the training images.
        groups: Article or patient of each image; an image of group None is a group of its own.
        modalities: Modality of each image, None if unknown; empty for none.
        candidates: At least 1.

    Raises:
        ValueError: No caption has a word, `captions` is a text, or `candidates` is less than 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    vectors = CaptionVectors.of(captions, groups)
    parts: dict[str | None, NDArray[np.bool_]] = {None: np.ones(len(vectors.captions), bool)}
    for modality in dict.fromkeys(filter(None, modalities)):
        rows = vectors.row[[other == modality for other in modalities]]
        parts[modality] = np.isin(np.arange(len(vectors.captions)), rows)
    return {name: _best(vectors, part, candidates) for name, part in parts.items() if part.any()}


def _best(vectors: CaptionVectors, is_reference: NDArray[np.bool_], candidates: int) -> str:
    """Return the caption that is the best one for the references (n,)."""
    estimate = _mean_cosine(vectors, is_reference) * _mean_penalty(vectors.words, is_reference)
    # rounded, because the order of a sum changes its last digits, which would decide between equal captions
    order = sorted(range(len(estimate)), key=lambda row: (-round(float(estimate[row]), 9), vectors.captions[row]))
    shortlist = list({vectors.texts[row]: row for row in reversed(order)}.values())[::-1][:candidates]
    exact = {row: _lower_mean(vectors, row, is_reference) for row in shortlist}
    return vectors.captions[min(exact, key=lambda row: (-round(exact[row], 9), vectors.captions[row]))]


def _lower_mean(vectors: CaptionVectors, row: int, is_reference: NDArray[np.bool_]) -> float:
    """Return the mean CIDEr-D of a caption minus its standard error; 0 without a reference of another group."""
    scores = cider_d_to_all(vectors.orders, vectors.words, row)[is_reference & vectors.others(row)]
    return float(scores.mean() - scores.std() / np.sqrt(len(scores))) if len(scores) else 0.0


def shuffled(references: Sequence[T], groups: Sequence[str | None] | None = None, seed: int = 0) -> list[T]:
    """Return the references in another order, in which no image has its own or one of its article or patient.

    The groups form one random cycle, and each image gets the reference that is as many places later as the largest
    group has images. Without groups that is the next image of a random cycle; a random permutation keeps one image in
    its place on average. A group with more than half of the images keeps some of its references, but no image its own.
    Two images with equal references may swap them.

    Args:
        references: One per image.
        groups: Article or patient of each image; an image of group None is a group of its own.
        seed: Of the order.

    Raises:
        ValueError: There are fewer than two references.
    """
    if isinstance(references, str) or len(references) < 2:
        raise ValueError(f"shuffling needs a list of at least two references, got {references!r}")
    n = len(references)
    order = list(range(n))
    random.Random(seed).shuffle(order)
    members: dict[object, list[int]] = {}
    for image in order:
        name = groups[image] if groups else None
        members.setdefault(image if name is None else (name,), []).append(image)
    cycle = [image for images in members.values() for image in images]
    shift = min(max(map(len, members.values())), n // 2)
    source = dict(zip(cycle, cycle[shift:] + cycle[:shift], strict=True))
    return [references[source[image]] for image in range(n)]


def _mean_cosine(vectors: CaptionVectors, is_reference: NDArray[np.bool_]) -> Floats:
    """Return (n,) the mean cosine of each caption with the references that it is scored against: 0 to 1."""
    n = len(vectors.captions)
    total = np.zeros(n)
    for order in vectors.orders:
        unit = order.weight / np.where(order.norm > 0, order.norm, 1.0)[order.caption]
        reference = unit * is_reference[order.caption]
        total += np.bincount(order.caption, unit * _sums(order.gram, reference), minlength=n)
        own = _sums(vectors.group[order.caption] * (order.gram.max(initial=0) + 1) + order.gram, reference)
        total -= np.bincount(order.caption, unit * own, minlength=n) * ~vectors.is_shared
    size = np.bincount(vectors.group, is_reference)[vectors.group]
    return total / np.maximum(len(vectors.orders) * (is_reference.sum() - size * ~vectors.is_shared), 1)


def _sums(keys: Ints, values: Floats) -> Floats:
    """Return (entries,) the sum of the values with the same key."""
    _, number = np.unique(keys, return_inverse=True)
    return np.asarray(np.bincount(number, values)[number], float)


def _mean_penalty(words: Ints, is_reference: NDArray[np.bool_]) -> Floats:
    """Return (n,) the mean length penalty of each caption against the references: 0 to 1."""
    values, row = np.unique(words, return_inverse=True)
    count = np.bincount(row, is_reference)
    penalty: Floats = (length_penalty(values[:, None] - values) @ count / is_reference.sum())[row]
    return penalty
