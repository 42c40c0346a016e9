"""What captions share, counted over all images at once: n-grams for BLEU and CIDEr, subsequences for ROUGE-L.

The n predictions of n images come first, then all references in the order of their images; `image` says whose each
caption is. An n-gram is a whole number, so that counting is sorting whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
_BETA = 1.2  # ROUGE-L's weight of recall against precision
_SIGMA = 6.0  # CIDEr-D's length penalty, in words


@dataclass(frozen=True)
class NgramCounts:
    """How often each caption has each n-gram of one length; sorted by n-gram, then by caption."""

    caption: NDArray[np.int64]  # (entries,) position of the caption
    gram: NDArray[np.int64]  # (entries,) 0 .. different n-grams - 1
    count: NDArray[np.int64]  # (entries,) 1 or more


def count_ngrams(words: Sequence[str], lengths: NDArray[np.int64]) -> Iterator[NgramCounts]:
    """Yield the counts of n-grams for n = 1 to 4 of `words`, all captions' in a row, `lengths` (captions,) of each.

    An n-gram is numbered by its place in the order of (number of its first word, number of the n - 1 words after it).
    The places of the latter are in order already, so each n costs one stable sorting by the first word: a radix sort
    for up to 65,536 different words.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    word = np.fromiter(map(numbers.__getitem__, words), np.min_scalar_type(len(numbers)))
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.cumsum(lengths)[caption] - np.arange(len(word))  # words from here to the caption's end
    gram = np.zeros(len(word) + 1, np.int64)  # the number of the n words from here on
    here = np.arange(1, len(word) + 1)  # the places of the n-grams in order, one caption after the other in each
    for n in range(1, ORDERS + 1):
        here = here[left[here - 1] >= n] - 1  # one word earlier, unless that is another caption's
        here = here[np.argsort(word[here], kind="stable")]
        changes = _changes(word[here]) | _changes(gram[here + 1])
        gram[here] = number = np.cumsum(changes) - 1
        starts = np.flatnonzero(changes | _changes(caption[here]))
        yield NgramCounts(caption[here[starts]], number[starts], np.diff(starts, append=len(here)))


def _changes(values: NDArray) -> NDArray[np.bool_]:
    """Return where a value differs from the one before it; the first one does."""
    changed = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def overlaps(
    words: Sequence[str], lengths: NDArray[np.int64], image: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return BLEU's matches (n, 4) and the CIDEr-D of each image (n,), 0 to 10, from one counting of the n-grams.

    A match is an n-gram of the prediction, each at most as often as the reference that has most of it
    (Papineni et al. 2002, P02-1040, section 2.1; pycocoevalcap/bleu/bleu_scorer.py).
    CIDEr-D is that of Vedantam et al. 2015 (arXiv:1411.5726, section 7) as in pycocoevalcap/cider/cider_scorer.py:
    clipped cosine of tf-idf vectors, idf = log(n / images with the n-gram in a reference, at least 1);
    a Gaussian penalty of the length difference; times 10, mean over n = 1 to 4 and over the references.
    """
    matches, cosine = np.zeros((n, ORDERS), np.int64), np.zeros(len(image) - n)
    for order, counts in enumerate(count_ngrams(words, lengths)):
        predicted, referred = _shared(counts, image, n)
        most = np.zeros_like(counts.count)
        np.maximum.at(most, predicted, counts.count[referred])
        matches[:, order] = np.bincount(image[counts.caption], np.minimum(most, counts.count), minlength=n)
        weight = counts.count * _idf(counts, image, n)[counts.gram]
        cosine += _clipped_cosine(counts.caption, weight, image, predicted, referred)
    # pycocoevalcap takes bigrams for the length, one less each: the difference is that of words
    cosine *= np.exp(-((lengths[n:] - lengths[image[n:]]) ** 2) / (2 * _SIGMA**2))
    references = np.bincount(image[n:], minlength=n)
    return matches, 10.0 * np.bincount(image[n:], cosine, minlength=n) / (ORDERS * references)


def _shared(counts: NgramCounts, image: NDArray[np.int64], n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the entries of predictions and of references that are one n-gram of one image, as two (pairs,) arrays."""
    key = counts.gram * n + image[counts.caption]  # ascending among predictions, and among references
    own, other = np.flatnonzero(counts.caption < n), np.flatnonzero(counts.caption >= n)
    place = np.searchsorted(key[own], key[other])
    found = np.append(key[own], -1)[place] == key[other]  # -1: what comes after all has no place
    return own[place[found]], other[found]


def _idf(counts: NgramCounts, image: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return (n-grams,) log(images) - log(images with the n-gram in a reference)."""
    references = counts.caption >= n
    gram, whose = counts.gram[references], image[counts.caption[references]]
    having = np.bincount(gram[_changes(gram) | _changes(whose)], minlength=int(counts.gram.max(initial=0)) + 1)
    return np.log(n) - np.log(np.maximum(having, 1))


def _clipped_cosine(
    caption: NDArray[np.int64],
    weight: NDArray[np.float64],
    image: NDArray[np.int64],
    predicted: NDArray[np.intp],
    referred: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return (references,) the cosine of each with its prediction, whose weights are cut to the reference's: 0 to 1.

    `caption` and `weight` (entries,) are the tf-idf vectors; `predicted` and `referred` as `_shared` returns them.
    """
    captions, n = len(image), int(image.max()) + 1
    norm = np.sqrt(np.bincount(caption, weight**2, minlength=captions))
    clipped = np.minimum(weight[predicted], weight[referred]) * weight[referred]
    product = np.bincount(caption[referred], clipped, minlength=captions)[n:]
    lengths = norm[n:] * norm[image[n:]]
    return product / np.where(lengths > 0, lengths, 1.0)  # without weights the product is 0 too


def closest_lengths(lengths: NDArray[np.int64], image: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return (n,) the length of the reference nearest to each prediction's, of two the shorter one.

    `lengths` (captions,) in words. BLEU's "best match length" (P02-1040, section 2.2.2).
    """
    longest = int(lengths.max()) + 1
    away = np.abs(lengths[n:] - lengths[image[n:]])
    return np.minimum.reduceat(away * longest + lengths[n:], _firsts(image, n)) % longest


def rouge_l(texts: Sequence[str], image: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return (n,) the ROUGE-L of each image, 0 to 1.

    A word ends at a space and nowhere else: an empty text is one empty word, and a hard space is part of a word.
    F with beta 1.2 of the best precision and the best recall over the references, which need not be the same one's
    (Lin 2004, W04-1013, section 3; pycocoevalcap/rouge/rouge.py).
    """
    lengths = np.array([text.count(" ") + 1 for text in texts])
    pairs = ((texts[whose], text) for whose, text in zip(image[n:], texts[n:], strict=True))
    common = np.array([lcs_length(prediction.split(" "), text.split(" ")) for prediction, text in pairs])
    precision = np.maximum.reduceat(common / lengths[image[n:]], _firsts(image, n))
    recall = np.maximum.reduceat(common / lengths[n:], _firsts(image, n))
    below = recall + _BETA**2 * precision
    return (1 + _BETA**2) * precision * recall / np.where(below > 0, below, 1.0)


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    One row of the table at a time, a bit per word of `first`, 0 where the length grows (Hyyro 2004, Bit-parallel LCS
    length computation revisited; after Allison & Dix 1986): additions of long integers instead of a loop.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for word in second:
        if matched := row & places.get(word, 0):
            row = (row + matched) | (row - matched)
    return len(first) - (row & every).bit_count()


def _firsts(image: NDArray[np.int64], n: int) -> NDArray[np.intp]:
    """Return (n,) the place of each image's first reference among all references."""
    return np.searchsorted(image[n:], np.arange(n))
