"""The candidate caption that agrees most with the others and with the captions of similar training images.

Minimum Bayes risk decoding (Kumar & Byrne 2004, N04-1022) with CIDEr-D as the gain, extended by the captions of the
nearest training images (Devlin et al. 2015, arXiv:1505.04467, section 3.2, which has no candidates of a model).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from medcap.metrics.ngrams import ORDERS, length_penalty

Grams = dict[int, float]  # a number for each n-gram, by its hash
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class CaptionVector:
    """The tf-idf vectors of a caption for n = 1 to 4, their lengths, and the number of words."""

    weights: tuple[Grams, ...]
    norms: tuple[float, ...]
    words: int


class CiderD:
    """CIDEr-D of pairs of captions, with the idf of fixed captions (Vedantam et al. 2015, arXiv:1411.5726, section 7).

    Words are runs of letters and digits in lower case: the PTB tokenizer takes seconds to start.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        """`captions`: one for each training image; ValueError if there are none."""
        if not captions:
            raise ValueError("an idf needs at least one caption")
        self.log_images = math.log(len(captions))
        counts: Counter[int] = Counter()
        for caption in captions:
            counts.update({gram for _, gram in _grams(caption)})
        self.frequency = {gram: count for gram, count in counts.items() if count > 1}  # others count as 1

    def vector(self, caption: str) -> CaptionVector:
        """Return the vectors of a caption; an n-gram that no training caption has counts as if one had it."""
        weights: tuple[Grams, ...] = tuple({} for _ in range(ORDERS))
        for (order, gram), count in Counter(_grams(caption)).items():
            weights[order][gram] = count * (self.log_images - math.log(self.frequency.get(gram, 1)))
        norms = tuple(math.sqrt(sum(weight**2 for weight in grams.values())) for grams in weights)
        return CaptionVector(weights, norms, len(_WORD.findall(caption)))

    def score(self, caption: CaptionVector, reference: CaptionVector) -> float:
        """Return the CIDEr-D of a caption against one reference: 0 to 10."""
        cosine = 0.0
        pairs = zip(caption.weights, reference.weights, caption.norms, reference.norms, strict=True)
        for own, other, norm, other_norm in pairs:
            product = sum(min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
            cosine += product / (norm * other_norm) if product else 0.0
        return 10 * cosine * float(length_penalty(caption.words - reference.words)) / ORDERS


def _grams(caption: str) -> Iterator[tuple[int, int]]:
    """Yield (n - 1, hash) for each n-gram of a caption, n = 1 to 4."""
    words = _WORD.findall(caption.lower())
    for order in range(ORDERS):
        for start in range(len(words) - order):
            yield order, hash(tuple(words[start : start + order + 1]))


@dataclass(frozen=True)
class Consensus:
    """Chooses a caption for each image among its candidates.

    Attributes:
        captions: The captions of m training images.
        vectors: Features of these images (m, width), float32 of length 1.
        cider: With the idf of all training captions.
        neighbors: Number of nearest training images.
        weight: Of their captions, 0 to 1; the other candidates have the rest.
    """

    captions: Sequence[str]
    vectors: torch.Tensor
    cider: CiderD
    neighbors: int
    weight: float

    def choose(self, candidates: Sequence[str], images: torch.Tensor) -> list[int]:
        """Return for each image the index in `candidates` of the chosen caption; of equal ones the first.

        Args:
            candidates: n * k captions, the k of an image one after the other.
            images: (n, width) features of the images, of length 1.
        """
        k = len(candidates) // len(images)
        nearest = (images @ self.vectors.T).topk(min(self.neighbors, len(self.captions))).indices.tolist()
        chosen = []
        for image, rows in enumerate(nearest):
            scores = self._scores(candidates[image * k : (image + 1) * k], [self.captions[row] for row in rows])
            chosen.append(image * k + max(range(k), key=lambda index: (scores[index], -index)))
        return chosen

    def _scores(self, candidates: Sequence[str], neighbors: Sequence[str]) -> list[float]:
        """Return the weighted mean CIDEr-D of each candidate to the others and to the neighbors."""
        own, others = [[self.cider.vector(text) for text in texts] for texts in (candidates, neighbors)]
        scores = []
        for index, caption in enumerate(own):
            rivals = [self.cider.score(caption, rival) for rival in own[:index] + own[index + 1 :]]
            similar = [self.cider.score(caption, neighbor) for neighbor in others]
            # rounded, because the order of a sum changes its last digits, which would decide between equal captions
            scores.append(round((1 - self.weight) * _mean(rivals) + self.weight * _mean(similar), 9))
        return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
