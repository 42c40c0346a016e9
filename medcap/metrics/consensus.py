"""The candidate caption that agrees most with the others and with the captions of similar training images.

Minimum Bayes risk decoding (Kumar & Byrne 2004, N04-1022) with CIDEr-D as the gain, extended by the captions of the
nearest training images (Devlin et al. 2015, arXiv:1505.04467, section 3.2, which has no candidates of a model).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medcap.metrics.training_idf import TrainingIdf

_WORD = re.compile(r"\w+")


def caption_words(caption: str) -> list[str]:
    """Return the runs of letters and digits in lower case: the PTB tokenizer takes seconds to start."""
    return _WORD.findall(caption.lower())


@dataclass(frozen=True)
class Consensus:
    """Chooses a caption for each image among its candidates.

    Attributes:
        captions: The captions of m training images.
        vectors: Features of these images (m, width), float32 of length 1.
        idf: Of all training captions, as `caption_words`.
        neighbors: Number of nearest training images.
        weight: Of their captions, 0 to 1; the other candidates have the rest.
    """

    captions: Sequence[str]
    vectors: torch.Tensor
    idf: TrainingIdf
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
        own, similar = ([caption_words(text) for text in texts] for texts in (candidates, neighbors))
        pairs = [(words, other) for i, words in enumerate(own) for other in (*own[:i], *own[i + 1 :], *similar)]
        predictions, references = zip(*pairs, strict=True)
        cider = self.idf.cider_d(predictions, references).reshape(len(own), -1)
        rivals, nearby = (part.mean(1) for part in np.split(cider, [len(own) - 1], 1))
        # rounded, because the order of a sum changes its last digits, which would decide between equal captions
        return np.round((1 - self.weight) * rivals + self.weight * nearby, 9).tolist()
