"""How sure a score is: each image's part in every metric, from which resampled corpora are scored without their texts.

A corpus score is a formula of sums over images, so that 1,000 resampled corpora are one product of two matrices.
    bootstrap    intervals: Efron & Tibshirani 1993, chapter 13 (percentiles); Koehn 2004 (W04-3250) for BLEU
    paired_test  approximate randomisation: Noreen 1989; Riezler & Maxwell 2005 (W05-0908)
    pool         mean and spread over the seeds of one recipe
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcap.metrics import ngrams

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")

Floats = NDArray[np.float64]

# the columns of a table of sums: 1 per image, BLEU's ten, ROUGE-L, CIDEr, and METEOR's six where there are any
_IMAGES, _BLEU, _ROUGE_L, _CIDER, _METEOR = 0, slice(1, 11), 11, 12, slice(13, 19)
_TINY, _SMALL = 1e-15, 1e-9  # what pycocoevalcap adds so that nothing is divided by 0
# METEOR 1.5's parameters for English (Denkowski & Lavie 2014, W14-3348, table 1; Constants.java, the ranking task)
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_BATCH = 1 << 22  # random numbers held at a time: 32 MB


@dataclass(frozen=True)
class Statistics:
    """What n images contribute to the corpus scores, one row per image; all arrays float64.

    bleu     (n, 10) words, words of the closest reference, matches for n = 1 to 4, n-grams for n = 1 to 4
    rouge_l  (n,) 0 to 1
    cider    (n,) 0 to 10, with the idf of all n images' references
    meteor   (n, 6) weighted words of prediction and reference, weighted matches in the two, chunks, matched words in
             both together; None where METEOR was not run
    """

    bleu: Floats
    rouge_l: Floats
    cider: Floats
    meteor: Floats | None = None

    def __len__(self) -> int:
        return len(self.rouge_l)

    @property
    def table(self) -> Floats:
        """(n, 19), or (n, 13) without METEOR: all columns side by side, behind a column of ones that counts images."""
        columns = [np.ones(len(self)), self.bleu, self.rouge_l, self.cider]
        return np.column_stack(columns if self.meteor is None else [*columns, self.meteor])

    @property
    def length_ratio(self) -> float:
        """Tokens of all predictions over those of their closest references; 0 without a token in either."""
        words, closest = self.bleu[:, :2].sum(0)
        return float(words / closest) if closest else 0.0

    @property
    def brevity_penalty(self) -> float:
        """BLEU's factor for captions that are too short, 0 to 1 (P02-1040, section 2.2.2)."""
        ratio = self.length_ratio
        return float(np.exp(min(1 - 1 / ratio, 0))) if ratio else 0.0

    def rows(self, chosen: Sequence[int] | NDArray[np.int64]) -> Statistics:
        """Return the statistics of some images alone; their CIDEr keeps the idf of all."""
        own = np.asarray(chosen)
        meteor = None if self.meteor is None else self.meteor[own]
        return Statistics(self.bleu[own], self.rouge_l[own], self.cider[own], meteor)

    def per_image(self) -> dict[str, Floats]:
        """Return (n,) scores of the single images by metric; the mean of BLEU's and METEOR's is no corpus score."""
        return _scores(self.table)

    def corpus(self, weights: ArrayLike | None = None) -> dict[str, Floats]:
        """Return (R,) corpus scores by metric for `weights` (R, n): how often each image counts, not all 0.

        None is one row of ones. BLEU and METEOR pool the images' counts; ROUGE-L and CIDEr are means over images.
        The idf of CIDEr stays that of all n images: who resamples asks for other images, not for another metric.
        """
        table = self.table
        return _scores(np.ones((1, len(self))) @ table if weights is None else np.asarray(weights, float) @ table)


def caption_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], meteor: Sequence[str] | None = None
) -> Statistics:
    """Return the statistics of one predicted caption per image against that image's references.

    Texts are PTB tokens joined by spaces, as `coco.tokenize` gives them: n predictions, n lists of at least one
    reference. `meteor` is the Java program's n answers to SCORE, one line per image.
    Scores equal pycocoevalcap's within 1e-12, whatever is empty.
    ValueError for zero images, lengths that differ, an image without reference.
    """
    n = len(predictions)
    if n == 0 or n != len(references) or (meteor is not None and n != len(meteor)) or not all(references):
        raise ValueError(f"{n} predictions need as many references, one or more each, and lines of METEOR; none is 0")
    texts = [*predictions, *(text for captions in references for text in captions)]
    image = np.concatenate([np.arange(n), np.repeat(np.arange(n), [len(captions) for captions in references])])
    # split twice: a list kept for every text wakes the garbage collector, which costs as much as all the rest
    lengths = np.array([len(text.split()) for text in texts])
    matches, cider = ngrams.overlaps(" ".join(texts).split(), lengths, image, n)
    possible = np.maximum(lengths[:n, None] - np.arange(ngrams.ORDERS), 0)
    bleu = np.column_stack([lengths[:n], ngrams.closest_lengths(lengths, image, n), matches, possible])
    rouge_l = ngrams.rouge_l(texts, image, n)
    return Statistics(bleu.astype(float), rouge_l, cider, None if meteor is None else _meteor_statistics(meteor))


def bootstrap(
    statistics: Statistics, groups: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each corpus score: percentiles 2.5 and 97.5 over resampled corpora.

    A resample draws as many images as there are, with replacement. `groups` names each image's article or patient,
    None for an image on its own; then whole groups are drawn, for images of one group are no independent evidence.
    ValueError for groups of another number than the images.
    """
    scores = _scores(_resample(_grouped(statistics.table, groups), resamples, seed))
    return {name: _interval(values) for name, values in scores.items()}


def paired_test(
    first: Statistics,
    second: Statistics,
    groups: Sequence[Hashable] | None = None,
    trials: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compare two systems on the same images; returns difference, p, low and high of each metric.

    `difference` is the first's corpus score minus the second's. In a trial every image swaps its two captions with
    probability 1/2 (`groups`, as for `bootstrap`, swap as one); `p` is the fraction of trials whose difference is as
    large in either direction, the data themselves counted as one: (hits + 1) / (trials + 1), never 0.
    `low` to `high` is the difference's 95 % bootstrap interval, from 1,000 resamples of the images.
    ValueError for systems of other numbers of images, or of which one alone has METEOR.
    """
    if first.table.shape != second.table.shape:
        raise ValueError(f"tables {first.table.shape} and {second.table.shape}: not the same images and metrics")
    one, two = _grouped(first.table, groups), _grouped(second.table, groups)
    found = _difference(one.sum(0)[None], two.sum(0)[None])
    hits = _hits(one, two, trials, seed)
    spread = _difference(*np.split(_resample(np.hstack([one, two]), 1000, seed), 2, axis=1))
    result = {}
    for name in found:
        low, high = _interval(spread[name])
        p = (hits[name] + 1) / (trials + 1)
        result[name] = {"difference": float(found[name][0]), "p": p, "low": low, "high": high}
    return result


def pool(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean, standard deviation (of a sample: n - 1) and n of each metric over runs that differ in the seed.

    One run has no spread: `std` is None. ValueError for no runs, and for runs of other metrics.
    """
    if not runs or any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError(f"pooling needs runs of the same metrics, got {[sorted(run) for run in runs]}")
    pooled: dict[str, dict[str, float | None]] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        std = float(np.std(values, ddof=1)) if len(runs) > 1 else None
        pooled[name] = {"mean": float(np.mean(values)), "std": std, "n": len(runs)}
    return pooled


def _scores(pooled: Floats) -> dict[str, Floats]:
    """Return (R,) scores by metric for R rows of sums (R, 19), or (R, 13) without METEOR."""
    images = pooled[:, _IMAGES]
    found = dict(zip(METRICS[:4], _bleu(pooled[:, _BLEU]).T, strict=True))
    found |= {"rouge_l": pooled[:, _ROUGE_L] / images, "cider": pooled[:, _CIDER] / images}
    if (meteor := pooled[:, _METEOR]).size:
        found["meteor"] = _meteor(meteor)
    return {name: found[name] for name in METRICS if name in found}


def _bleu(pooled: Floats) -> Floats:
    """Return (R, 4) BLEU-1..4, 0 to 1, of sums (R, 10): P02-1040, section 2.3, as in bleu_scorer.py."""
    words, closest, matches, possible = pooled[:, 0], pooled[:, 1], pooled[:, 2:6], pooled[:, 6:]
    precisions = np.cumprod((matches + _TINY) / (possible + _SMALL), axis=1)
    ratio = (words + _TINY) / (closest + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
    return precisions ** (1 / np.arange(1, ngrams.ORDERS + 1)) * brevity[:, None]


def _meteor(pooled: Floats) -> Floats:
    """Return (R,) METEOR, 0 to 1, of sums (R, 6): W14-3348, section 2, as in MeteorScorer.java's computeMetrics."""
    words, referred, matched, matched_there, chunks, both = pooled.T
    with np.errstate(divide="ignore", invalid="ignore"):  # without a match Java's NaN becomes 0, and so does ours
        mean = 1 / ((1 - _ALPHA) * words / matched + _ALPHA * referred / matched_there)
        score = mean * (1 - _GAMMA * (chunks / (both / 2)) ** _BETA)
    return np.where(both > 0, score, 0)


def _meteor_statistics(lines: Sequence[str]) -> Floats:
    """Return (n, 6), see `Statistics`, of answers to SCORE: 23 numbers in the order of MeteorStats.java's toString.

    A caption that equals its reference has no chunk: MeteorStats.addStats leaves it out of the corpus's.
    """
    numbers = np.array([line.split() for line in lines], float)  # ValueError for a line of another length
    lengths, matches = numbers[:, :4], numbers[:, 4:20].reshape(-1, 4, 2, 2)  # module, content or function, side
    kind = np.array([_DELTA, 1 - _DELTA])  # the weight of content and of function words
    weighted_words = _DELTA * (lengths[:, :2] - lengths[:, 2:]) + (1 - _DELTA) * lengths[:, 2:]
    weighted_matches = np.einsum("nmks,m,k->ns", matches, _MODULES, kind)
    chunks = numbers[:, 20]
    equal = (chunks == 1) & (matches.sum((1, 2)) == lengths[:, :2]).all(1)
    return np.column_stack([weighted_words, weighted_matches, np.where(equal, 0, chunks), numbers[:, 21:].sum(1)])


def _grouped(table: Floats, groups: Sequence[Hashable] | None) -> Floats:
    """Return (groups, columns) the sums of each group's rows; an image of group None is one of its own."""
    if groups is None:
        return table
    names = [(group,) if group is not None else image for image, group in enumerate(groups)]
    numbers: dict[Hashable, int] = {}
    rows = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    if len(rows) != len(table):
        raise ValueError(f"{len(rows)} groups do not go with {len(table)} images")
    return np.column_stack([np.bincount(rows, column) for column in table.T])


def _resample(table: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, columns) sums of as many rows of `table` as it has, drawn with replacement."""
    rng, n, sums = np.random.default_rng(seed), len(table), []
    for rows in _batches(resamples, n):
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        sums.append(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) @ table)
    return np.concatenate(sums)


def _hits(one: Floats, two: Floats, trials: int, seed: int) -> dict[str, int]:
    """Return in how many trials, rows of two tables swapped at random, the difference is as large as it is."""
    rng, found = np.random.default_rng(seed), _difference(one.sum(0)[None], two.sum(0)[None])
    hits = dict.fromkeys(found, 0)
    for rows in _batches(trials, len(one)):
        moved = rng.integers(2, size=(rows, len(one)), dtype=np.uint8).astype(float) @ (two - one)
        for name, values in _difference(one.sum(0) + moved, two.sum(0) - moved).items():
            # what should be as large is rounded differently, as where a trial swaps images that are alike
            hits[name] += int(np.sum(np.abs(values) >= np.abs(found[name]) - 1e-12))
    return hits


def _batches(total: int, width: int) -> Iterator[int]:
    """Yield how many of `total` rows to make at a time, so that memory does not grow with their number."""
    size = max(_BATCH // width, 1)
    for start in range(0, total, size):
        yield min(size, total - start)


def _difference(one: Floats, two: Floats) -> dict[str, Floats]:
    first, second = _scores(one), _scores(two)
    return {name: first[name] - second[name] for name in first}


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
