"""Statistics of each image, from which corpora are scored: confidence intervals, paired tests, pooling over seeds.

A corpus score is a formula of sums over images, so that 1,000 resampled corpora take one product of two matrices.
    bootstrap    intervals: Efron & Tibshirani 1993, chapter 13 (percentiles); Koehn 2004 (W04-3250) for BLEU
    paired_test  approximate randomisation: Noreen 1989; Riezler & Maxwell 2005 (W05-0908)
    pool         mean and standard deviation over the seeds of one recipe
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medcap.metrics import ngrams
from medcap.metrics.ngrams import Floats, Ints

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")

# columns of `Statistics.table`: 1 for each image, ten of BLEU, ROUGE-L, CIDEr, and six of METEOR
_IMAGES, _BLEU, _ROUGE_L, _CIDER, _METEOR = 0, slice(1, 11), 11, 12, slice(13, 19)
_TINY, _SMALL = 1e-15, 1e-9  # added by pycocoevalcap to avoid a division by 0
# METEOR 1.5's parameters for English (Denkowski & Lavie 2014, W14-3348, table 1; Constants.java, the ranking task)
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_BATCH = 1 << 22  # random numbers in memory at a time: 32 MB


@dataclass(frozen=True)
class Statistics:
    """The statistics of n images, one row per image.

    Attributes:
        bleu: (n, 10) words, words of the closest reference, matches for n = 1 to 4, n-grams for n = 1 to 4.
        rouge_l: (n,) 0 to 1.
        cider: (n,) 0 to 10, with an idf over the references of all n images.
        meteor: (n, 6) weighted words of prediction and reference, weighted matches in both, chunks, matched words in
            both together; None where METEOR was not run.
    """

    bleu: Floats
    rouge_l: Floats
    cider: Floats
    meteor: Floats | None = None

    def __len__(self) -> int:
        return len(self.rouge_l)

    @property
    def table(self) -> Floats:
        """All columns, after a column of ones that counts images: (n, 19), or (n, 13) without METEOR."""
        columns = [np.ones(len(self)), self.bleu, self.rouge_l, self.cider]
        return np.column_stack(columns if self.meteor is None else [*columns, self.meteor])

    @property
    def length_ratio(self) -> float:
        """Tokens of all predictions over those of their closest references; 0 without tokens."""
        words, closest = self.bleu[:, :2].sum(0)
        return float(words / closest) if closest else 0.0

    @property
    def brevity_penalty(self) -> float:
        """Factor of BLEU for short captions, 0 to 1 (P02-1040, section 2.2.2)."""
        ratio = self.length_ratio
        return float(np.exp(min(1 - 1 / ratio, 0))) if ratio else 0.0

    def rows(self, indices: Sequence[int] | Ints) -> Statistics:
        """Return the statistics of some images; CIDEr keeps the idf of all."""
        own = np.asarray(indices)
        meteor = None if self.meteor is None else self.meteor[own]
        return Statistics(self.bleu[own], self.rouge_l[own], self.cider[own], meteor)

    def per_image(self) -> dict[str, Floats]:
        """Return (n,) scores of single images by metric. For BLEU and METEOR their mean is not the corpus score."""
        return _scores(self.table)

    def corpus(self, weights: ArrayLike | None = None) -> dict[str, Floats]:
        """Return (R,) corpus scores by metric. BLEU and METEOR pool counts; ROUGE-L and CIDEr are means over images.

        `weights` (R, n) are how often each image counts; None is one row of ones. CIDEr keeps the idf of all images.
        """
        table = self.table
        return _scores(np.ones((1, len(self))) @ table if weights is None else np.asarray(weights, float) @ table)


def caption_statistics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    meteor_lines: Sequence[str | None] | None = None,
) -> Statistics:
    """Return the counts of each image from which corpus scores are computed (see `Statistics`).

    Scores computed from them differ from those of pycocoevalcap by less than 1e-12, also for empty texts.

    Args:
        predictions: n texts of PTB tokens joined by spaces, as returned by `coco.tokenize`.
        references: n lists with at least one such text each.
        meteor_lines: n lines from `Meteor.statistics`, None for an image without METEOR; None leaves METEOR out.
    """
    n = len(predictions)
    texts = [*predictions, *(text for captions in references for text in captions)]
    image_of_text = np.concatenate([np.arange(n), np.repeat(np.arange(n), [len(captions) for captions in references])])
    # texts are split here and again below: keeping a list of words per text costs as much time as all the rest
    lengths = np.array([len(text.split()) for text in texts])
    matches, cider = ngrams.overlaps(" ".join(texts).split(), lengths, image_of_text, n)
    ngram_counts = np.maximum(lengths[:n, None] - np.arange(ngrams.ORDERS), 0)
    bleu = np.column_stack([lengths[:n], ngrams.closest_lengths(lengths, image_of_text, n), matches, ngram_counts])
    rouge_l = ngrams.rouge_l(texts, image_of_text, n)
    return Statistics(
        bleu.astype(float), rouge_l, cider, None if meteor_lines is None else _meteor_statistics(meteor_lines)
    )


def bootstrap(
    statistics: Statistics, groups: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each corpus score: percentiles 2.5 and 97.5 over resampled corpora.

    Images are drawn with replacement. Images of one article or patient are not independent: complete `groups` are
    drawn; an image of group None is a group of its own.
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
    """Compare two systems on the same images.

    In a trial each image (or group, as for `bootstrap`) swaps its two captions with probability 1/2.

    Returns:
        By metric: `difference`, first minus second; `p`, the fraction of trials with at least this absolute
        difference, (hits + 1) / (trials + 1); `low` and `high`, a 95 % bootstrap interval of the difference.

    Raises:
        ValueError: The systems differ in the number of images, or only one has METEOR.
    """
    if first.table.shape != second.table.shape:
        raise ValueError(f"tables {first.table.shape} and {second.table.shape}: not the same images and metrics")
    one, two = _grouped(first.table, groups), _grouped(second.table, groups)
    differences = _difference(one.sum(0)[None], two.sum(0)[None])
    hits = _hits(one, two, trials, seed)
    resampled = _difference(*np.split(_resample(np.hstack([one, two]), 1000, seed), 2, axis=1))
    result = {}
    for name, difference in differences.items():
        low, high = _interval(resampled[name])
        p = (hits[name] + 1) / (trials + 1)
        result[name] = {"difference": float(difference[0]), "p": p, "low": low, "high": high}
    return result


def summarize_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean, sample standard deviation and n of each metric over the scores of two or more runs.

    Raises:
        ValueError: The runs have different metrics.
    """
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError(f"cannot summarize runs with different metrics: {[sorted(run) for run in runs]}")
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: {"mean": float(np.mean(scores)), "std": float(np.std(scores, ddof=1)), "n": len(scores)}
        for name, scores in values.items()
    }


def _scores(pooled: Floats) -> dict[str, Floats]:
    """Return (R,) scores by metric for R rows of sums (R, 19), or (R, 13) without METEOR."""
    images = pooled[:, _IMAGES]
    scores = dict(zip(METRICS[:4], _bleu(pooled[:, _BLEU]).T, strict=True))
    if (meteor := pooled[:, _METEOR]).size:
        scores["meteor"] = _meteor(meteor)
    return scores | {"rouge_l": pooled[:, _ROUGE_L] / images, "cider": pooled[:, _CIDER] / images}


def _bleu(pooled: Floats) -> Floats:
    """Return (R, 4) BLEU-1..4, 0 to 1, of sums (R, 10): P02-1040, section 2.3, as in bleu_scorer.py."""
    words, closest, matches, possible = pooled[:, 0], pooled[:, 1], pooled[:, 2:6], pooled[:, 6:]
    precisions = np.cumprod((matches + _TINY) / (possible + _SMALL), axis=1)
    ratio = (words + _TINY) / (closest + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
    return precisions ** (1 / np.arange(1, ngrams.ORDERS + 1)) * brevity[:, None]


def _meteor(pooled: Floats) -> Floats:
    """Return (R,) METEOR, 0 to 1, of sums (R, 6): W14-3348, section 2, as in MeteorScorer.java's computeMetrics."""
    words, reference_words, matched, reference_matched, chunks, both = pooled.T
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN without a match, which becomes 0 as in Java
        mean = 1 / ((1 - _ALPHA) * words / matched + _ALPHA * reference_words / reference_matched)
        score = mean * (1 - _GAMMA * (chunks / (both / 2)) ** _BETA)
    return np.where(both > 0, score, 0)


def _meteor_statistics(lines: Sequence[str | None]) -> Floats:
    """Return (n, 6), see `Statistics`, of answers to SCORE: 23 numbers in the order of MeteorStats.java's toString.

    The chunk of a caption that equals its reference is not counted, as in MeteorStats.addStats. An image without
    answer has no words, so that it does not count.
    """
    numbers = np.array([line.split() if line else [0] * 23 for line in lines], float)
    lengths, matches = numbers[:, :4], numbers[:, 4:20].reshape(-1, 4, 2, 2)  # module, content or function, text
    kind = np.array([_DELTA, 1 - _DELTA])  # weights of content and function words
    weighted_words = _DELTA * (lengths[:, :2] - lengths[:, 2:]) + (1 - _DELTA) * lengths[:, 2:]
    weighted_matches = np.einsum("nmks,m,k->ns", matches, _MODULES, kind)
    chunks = numbers[:, 20]
    equal = (chunks == 1) & (matches.sum((1, 2)) == lengths[:, :2]).all(1)
    return np.column_stack([weighted_words, weighted_matches, np.where(equal, 0, chunks), numbers[:, 21:].sum(1)])


def _grouped(table: Floats, groups: Sequence[Hashable] | None) -> Floats:
    """Return (groups, columns) the sums over each group's rows."""
    if groups is None:
        return table
    names = [(group,) if group is not None else image for image, group in enumerate(groups)]
    numbers: dict[Hashable, int] = {}
    rows = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    return np.column_stack([np.bincount(rows, column) for column in table.T])


def _resample(table: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, columns) sums of as many rows of `table` as it has, drawn with replacement."""
    rng, n, sums = np.random.default_rng(seed), len(table), []
    for rows in _batches(resamples, n):
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        sums.append(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) @ table)
    return np.concatenate(sums)


def _hits(one: Floats, two: Floats, trials: int, seed: int) -> dict[str, int]:
    """Return the number of trials, with rows of the two tables swapped at random, with at least the difference."""
    rng, measured = np.random.default_rng(seed), _difference(one.sum(0)[None], two.sum(0)[None])
    hits = dict.fromkeys(measured, 0)
    for rows in _batches(trials, len(one)):
        moved = rng.integers(2, size=(rows, len(one)), dtype=np.uint8).astype(float) @ (two - one)
        for name, values in _difference(one.sum(0) + moved, two.sum(0) - moved).items():
            # equal differences may be rounded differently, as after swapping equal images
            hits[name] += int(np.sum(np.abs(values) >= np.abs(measured[name]) - 1e-12))
    return hits


def _batches(total: int, width: int) -> Iterator[int]:
    """Yield the number of rows to draw at a time, which limits memory."""
    size = max(_BATCH // width, 1)
    for start in range(0, total, size):
        yield min(size, total - start)


def _difference(one: Floats, two: Floats) -> dict[str, Floats]:
    first, second = _scores(one), _scores(two)
    return {name: first[name] - second[name] for name in first}


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
