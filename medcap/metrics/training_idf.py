"""CIDEr-D of single captions with the idf of a fixed set of captions, such as those of the training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medcap.metrics.ngrams import Floats, Ints, NgramCounts, cider_d, count_ngrams, idf, weighted

Words = Sequence[str]


class TrainingIdf:
    """The number of captions that contain each n-gram of 1 to 4 words.

    CIDEr of an evaluation takes the idf from the references that it scores. A reward must not depend on the other
    images of its batch, nor must the choice among beams, so that they take the idf of the training captions (Rennie et
    al., 2017).
    """

    def __init__(self, captions: Sequence[Words]) -> None:
        """Count the n-grams of `captions`, lists of words."""
        words, lengths = _joined(captions)
        self.captions = len(captions)
        self.numbers = {word: number for number, word in enumerate(dict.fromkeys(words), 1)}  # 0: any other word
        self.known: list[tuple[NDArray[np.uint64], Ints]] = []  # for n = 1 to 4: n-grams, captions with them
        for n, counts in enumerate(count_ngrams(words, lengths), 1):
            grams = self._grams(words, n, counts)
            order = np.argsort(grams)
            self.known.append((grams[order], np.bincount(counts.gram)[order]))

    def cider_d(self, predictions: Sequence[Words], references: Sequence[Words]) -> Floats:
        """Return the CIDEr-D (n,), 0 to 10, of each prediction against its reference."""
        n, (words, lengths) = len(predictions), _joined([*predictions, *references])
        vectors = [
            weighted(counts, self._idf(words, order, counts), 2 * n)
            for order, counts in enumerate(count_ngrams(words, lengths), 1)
        ]
        return cider_d(vectors, lengths, np.tile(np.arange(n), 2), n)

    def _grams(self, words: Words, n: int, counts: NgramCounts) -> NDArray[np.uint64]:
        """Return a number for each n-gram of `counts`; with up to 65,534 different words no two are equal."""
        start = counts.start[np.unique(counts.gram, return_index=True)[1]]
        number = np.array([self.numbers.get(word, 0) for word in words], np.uint64)
        grams, base = np.zeros(len(start), np.uint64), np.uint64(len(self.numbers) + 1)
        for offset in range(n):
            grams = grams * base + number[start + offset]  # modulo 2 ** 64
        return grams

    def _idf(self, words: Words, n: int, counts: NgramCounts) -> Floats:
        """Return the idf of each n-gram of `counts`; one that no caption contains has that of one caption."""
        grams, (known, frequency) = self._grams(words, n, counts), self.known[n - 1]
        position = np.searchsorted(known, grams).clip(max=max(len(known) - 1, 0))
        is_known = known[position] == grams if len(known) else np.zeros(len(grams), bool)
        return idf(np.where(is_known, frequency[position] if len(known) else 0, 0), self.captions)


def _joined(captions: Sequence[Words]) -> tuple[list[str], Ints]:
    """Return the words of all captions, and the number of words of each."""
    return [word for caption in captions for word in caption], np.array([len(caption) for caption in captions])
