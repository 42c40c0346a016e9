"""N-grams, CIDEr-D and ROUGE-L of all captions at once, in arrays.

Captions are one list: the predictions of n images, then all references in the order of their images; `image`
(captions,) is the image of each. N-grams are integers, so that counting them is sorting integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
_BETA = 1.2  # weight of recall against precision in ROUGE-L
_SIGMA = 6.0  # of the length penalty of CIDEr-D, in words

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramCounts:
    """How often each caption has each n-gram of one length; sorted by n-gram, then by caption."""

    caption: Ints  # (entries,) row of the caption
    gram: Ints  # (entries,) 0 .. different n-grams - 1
    count: Ints  # (entries,) 1 or more
    start: Ints  # (entries,) number of a word of the list at which the n-gram begins


def count_ngrams(words: Sequence[str], lengths: Ints) -> Iterator[NgramCounts]:
    """Yield the counts of n-grams for n = 1 to 4.

    An n-gram is numbered by its rank in the order of (first word, n - 1 words after it). The latter are ranked before,
    so that each n takes one stable sort by the first word, a radix sort for up to 65,536 different words.

    Args:
        words: The words of all captions, one after the other.
        lengths: (captions,) number of words.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    word = np.fromiter(map(numbers.__getitem__, words), np.min_scalar_type(len(numbers)))
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.cumsum(lengths)[caption] - np.arange(len(word))  # words from here to the end of the caption
    gram = np.zeros(len(word) + 1, np.int64)  # number of the n-gram that starts here
    start = np.arange(1, len(word) + 1)  # where the n-grams start, sorted by n-gram, then by caption
    for n in range(1, ORDERS + 1):
        start = start[left[start - 1] >= n] - 1  # one word earlier, unless that is in another caption
        start = start[np.argsort(word[start], kind="stable")]
        changes = _changes(word[start]) | _changes(gram[start + 1])
        gram[start] = number = np.cumsum(changes) - 1
        entries = np.flatnonzero(changes | _changes(caption[start]))
        yield NgramCounts(
            caption[start[entries]], number[entries], np.diff(entries, append=len(start)), start[entries]
        )


def _changes(values: NDArray) -> NDArray[np.bool_]:
    """Return where a value differs from the one before it; the first one does."""
    changed = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


@dataclass(frozen=True)
class TfIdf:
    """The tf-idf vectors of all captions for n-grams of one length, as entries in the order of `NgramCounts`."""

    caption: Ints  # (entries,)
    gram: Ints  # (entries,)
    weight: Floats  # (entries,) count times idf
    norm: Floats  # (captions,) length of each vector


def tf_idf(counts: NgramCounts, image: Ints, is_reference: NDArray[np.bool_]) -> TfIdf:
    """Weigh n-grams by idf = log(images) - log(images with the n-gram in a reference, at least 1).

    `is_reference` (captions,) selects the captions from which the idf is computed.
    """
    entries = is_reference[counts.caption]
    gram, owner = counts.gram[entries], image[counts.caption[entries]]
    frequency = np.bincount(gram[_changes(gram) | _changes(owner)], minlength=int(counts.gram.max(initial=0)) + 1)
    return weighted(counts, idf(frequency, image.max() + 1), len(image))


def idf(frequency: NDArray, documents: int) -> Floats:
    """Return log(documents) - log(those with the n-gram, at least 1)."""
    return np.log(documents) - np.log(np.maximum(frequency, 1))


def weighted(counts: NgramCounts, idf: Floats, captions: int) -> TfIdf:
    """Multiply counts by the idf (n-grams,) of their n-grams."""
    weight = counts.count * idf[counts.gram]
    norm = np.sqrt(np.bincount(counts.caption, weight**2, minlength=captions))
    return TfIdf(counts.caption, counts.gram, weight, norm)


def clipped_product(vectors: TfIdf, predicted: NDArray[np.intp], reference: NDArray[np.intp]) -> NDArray:
    """Return (captions,) the dot product of each reference with its prediction, whose weights are clipped.

    `predicted` and `reference` (pairs,) are entries of one n-gram in a prediction and in a reference of its image.
    """
    clipped = np.minimum(vectors.weight[predicted], vectors.weight[reference]) * vectors.weight[reference]
    return np.bincount(vectors.caption[reference], clipped, minlength=len(vectors.norm))


def length_penalty(difference: NDArray) -> NDArray:
    """Return the Gaussian penalty of CIDEr-D for a difference in words, 0 to 1."""
    return np.exp(-(difference**2) / (2 * _SIGMA**2))


def overlaps(words: Sequence[str], lengths: Ints, image: Ints, n: int) -> tuple[Ints, Floats]:
    """Return the matches of BLEU (n, 4) and the CIDEr-D of each image (n,), 0 to 10.

    A match is an n-gram of the prediction, counted at most as often as in the reference that has most of it
    (Papineni et al. 2002, P02-1040, section 2.1; pycocoevalcap/bleu/bleu_scorer.py).
    CIDEr-D is that of Vedantam et al. 2015 (arXiv:1411.5726, section 7) as in pycocoevalcap/cider/cider_scorer.py:
    the clipped cosine of tf-idf vectors, times `length_penalty`, times 10; mean over n = 1 to 4 and over references.
    """
    matches, cosine = np.zeros((n, ORDERS), np.int64), np.zeros(len(image) - n)
    for order, counts in enumerate(count_ngrams(words, lengths)):
        predicted, reference = _shared(counts, image, n)
        most = np.zeros_like(counts.count)
        np.maximum.at(most, predicted, counts.count[reference])
        matches[:, order] = np.bincount(image[counts.caption], np.minimum(most, counts.count), minlength=n)
        vectors = tf_idf(counts, image, np.arange(len(image)) >= n)
        cosine += _cosines(vectors, predicted, reference, image, n)
    return matches, _cider_d(cosine, lengths, image, n)


def cider_d(orders: Iterable[TfIdf], lengths: Ints, image: Ints, n: int) -> Floats:
    """Return the CIDEr-D of each image (n,), 0 to 10, from the vectors for n = 1 to 4 (see `overlaps`)."""
    cosines = [_cosines(vectors, *_shared(vectors, image, n), image, n) for vectors in orders]
    return _cider_d(np.sum(cosines, 0), lengths, image, n)


def _cosines(vectors: TfIdf, predicted: NDArray[np.intp], reference: NDArray[np.intp], image: Ints, n: int) -> Floats:
    """Return the clipped cosine of each reference and its prediction."""
    product = clipped_product(vectors, predicted, reference)
    return _over(product[n:], vectors.norm[n:] * vectors.norm[image[n:]])


def _cider_d(cosine: Floats, lengths: Ints, image: Ints, n: int) -> Floats:
    """Return CIDEr-D (n,) from the sums of cosines over n = 1 to 4."""
    # pycocoevalcap measures length in bigrams, one less each: the difference is that of words
    cosine = cosine * length_penalty(lengths[n:] - lengths[image[n:]])
    references = np.bincount(image[n:], minlength=n)
    return 10.0 * np.bincount(image[n:], cosine, minlength=n) / (ORDERS * references)


def cider_d_to_all(orders: Sequence[TfIdf], lengths: Ints, row: int) -> Floats:
    """Return (captions,) the CIDEr-D of caption `row` against each caption as the only reference, 0 to 10.

    Args:
        orders: Vectors for n = 1 to 4, with one idf.
        lengths: (captions,) length of each caption.
        row: Caption that is scored.
    """
    cosine = np.zeros(len(lengths))
    for vectors in orders:
        own = np.flatnonzero(vectors.caption == row)
        entry = np.full(int(vectors.gram.max(initial=0)) + 1, -1)
        entry[vectors.gram[own]] = own
        reference = np.flatnonzero(entry[vectors.gram] >= 0)
        product = clipped_product(vectors, entry[vectors.gram[reference]], reference)
        cosine += _over(product, vectors.norm * vectors.norm[row])
    return 10.0 * cosine * length_penalty(lengths - lengths[row]) / len(orders)


def mutual_cider_d(orders: Sequence[TfIdf], words: Ints, rows: Ints) -> Floats:
    """Return (k, k) the CIDEr-D of each of k captions against each other one as the only reference, 0 to 10.

    Args:
        orders: Vectors for n = 1 to 4, with one idf; their entries are sorted by caption.
        words: (captions,) length of each caption.
        rows: (k,) captions.

    Returns:
        Row: the caption that is scored; column: the reference. The diagonal is 0.
    """
    k = len(rows)
    cosine = np.zeros((k, k))
    for vectors in orders:
        first, last = (np.searchsorted(vectors.caption, rows, side) for side in ("left", "right"))
        entries = np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)])
        _, column, count = np.unique(vectors.gram[entries], return_inverse=True, return_counts=True)
        weight = np.zeros((k, len(count)))
        weight[np.repeat(np.arange(k), last - first), column] = vectors.weight[entries]
        weight = weight[:, count > 1]  # the others are in one caption only
        is_equal = ((weight == 0) | (weight == weight.max(0, initial=0))).all(0)  # as often in every caption: fast
        equal, other = weight[:, is_equal], weight[:, ~is_equal]
        product = (equal > 0) @ (equal**2).T + np.einsum("prg,rg->pr", np.minimum(other[:, None], other), other)
        cosine += _over(product, np.outer(vectors.norm[rows], vectors.norm[rows]))
    np.fill_diagonal(cosine, 0)
    return 10.0 * cosine * length_penalty(words[rows][:, None] - words[rows]) / len(orders)


def _over(product: Floats, norms: Floats) -> Floats:
    """Divide; where a norm is 0, the product is 0 too."""
    return product / np.where(norms > 0, norms, 1.0)


def _shared(counts: NgramCounts | TfIdf, image: Ints, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the entries of predictions and of references with the same n-gram and image, as two (pairs,) arrays."""
    key = counts.gram * n + image[counts.caption]  # ascending among predictions, and among references
    own, other = np.flatnonzero(counts.caption < n), np.flatnonzero(counts.caption >= n)
    position = np.searchsorted(key[own], key[other])
    is_shared = np.append(key[own], -1)[position] == key[other]  # -1: after the last key
    return own[position[is_shared]], other[is_shared]


def closest_lengths(lengths: Ints, image: Ints, n: int) -> Ints:
    """Return (n,) the length of the reference closest to each prediction, of two the shorter one.

    `lengths` (captions,) are in words. The "best match length" of BLEU (P02-1040, section 2.2.2).
    """
    longest = int(lengths.max()) + 1
    distance = np.abs(lengths[n:] - lengths[image[n:]])
    return np.minimum.reduceat(distance * longest + lengths[n:], _firsts(image, n)) % longest


def rouge_l(texts: Sequence[str], image: Ints, n: int) -> Floats:
    """Return (n,) the ROUGE-L of each image, 0 to 1.

    Words are separated by single spaces: an empty text is one empty word, and a no-break space is part of a word.
    F with beta 1.2 of the best precision and the best recall over the references, which may come from two references
    (Lin 2004, W04-1013, section 3; pycocoevalcap/rouge/rouge.py).
    """
    lengths = np.array([text.count(" ") + 1 for text in texts])
    pairs = ((texts[owner], text) for owner, text in zip(image[n:], texts[n:], strict=True))
    common = np.array([lcs_length(prediction.split(" "), text.split(" ")) for prediction, text in pairs])
    precision = np.maximum.reduceat(common / lengths[image[n:]], _firsts(image, n))
    recall = np.maximum.reduceat(common / lengths[n:], _firsts(image, n))
    return _over((1 + _BETA**2) * precision * recall, recall + _BETA**2 * precision)


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    One row of the table is an integer with a bit per word of `first`, 0 where the length grows (Hyyro 2004,
    Bit-parallel LCS length computation revisited; after Allison & Dix 1986), so that the inner loop is one addition.
    """
    positions: dict[str, int] = {}
    for position, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << position
    row = ones = (1 << len(first)) - 1
    for word in second:
        if matched := row & positions.get(word, 0):
            row = (row + matched) | (row - matched)
    return len(first) - (row & ones).bit_count()


def _firsts(image: Ints, n: int) -> NDArray[np.intp]:
    """Return (n,) the position of each image's first reference among all references."""
    return np.searchsorted(image[n:], np.arange(n))
