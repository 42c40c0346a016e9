"""Tf-idf vectors of training captions, by which baselines choose the caption that is most similar to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcap.metrics.coco import tokenize
from medcap.metrics.ngrams import Ints, TfIdf, count_ngrams, tf_idf


@dataclass(frozen=True)
class CaptionVectors:
    """The n different captions of a data set: a caption that several images of one group share is one of them.

    Attributes:
        captions: n captions.
        texts: Their tokens, joined by spaces.
        group: (n,) number of the article or patient.
        is_shared: (n,) whether the same tokens are also a caption of another group.
        words: (n,) number of tokens, at least 1.
        orders: Vectors for n-grams of 1 to 4 words, with an idf over the n captions; sorted by caption.
        row: (images,) row of each caption that was given; -1 for a caption without a word.
    """

    captions: list[str]
    texts: list[str]
    group: Ints
    is_shared: NDArray[np.bool_]
    words: Ints
    orders: list[TfIdf]
    row: Ints

    @classmethod
    def of(cls, captions: Sequence[str], groups: Sequence[str | None] | None = None) -> CaptionVectors:
        """Return the vectors of one caption per image; an image of group None is a group of its own.

        Raises:
            ValueError: No caption has a word, or `captions` is a text.
        """
        names = [image if name is None else (name,) for image, name in enumerate(groups or [None] * len(captions))]
        keys = list(zip(names, tokenize(captions), strict=True))
        different: dict[tuple[object, str], str] = {}
        for key, caption in zip(keys, captions, strict=True):
            if key[1]:
                different[key] = min(caption, different.get(key, caption))
        if not different:
            raise ValueError(f"none of the {len(captions)} captions has a word")
        texts = [text for _, text in different]
        counts, words = Counter(texts), np.array([len(text.split()) for text in texts])
        number = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in different))}
        rows = {key: row for row, key in enumerate(different)}
        every, grams = np.arange(len(texts)), count_ngrams(" ".join(texts).split(), words)
        return cls(
            captions=list(different.values()),
            texts=texts,
            group=np.array([number[name] for name, _ in different]),
            is_shared=np.array([counts[text] > 1 for text in texts]),
            words=words,
            orders=[_by_caption(tf_idf(order, every, every >= 0)) for order in grams],
            row=np.array([rows.get(key, -1) for key in keys]),
        )

    def others(self, row: int) -> NDArray[np.bool_]:
        """Return (n,) the captions that `row` is scored against: those of other groups, or all if it is shared."""
        return (self.group != self.group[row]) | self.is_shared[row]


def _by_caption(vectors: TfIdf) -> TfIdf:
    order = np.argsort(vectors.caption, kind="stable")
    return TfIdf(vectors.caption[order], vectors.gram[order], vectors.weight[order], vectors.norm)
