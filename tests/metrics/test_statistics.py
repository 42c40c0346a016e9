"""Scores equal pycocoevalcap, METEOR and values computed by hand; intervals and tests are calibrated.

pytest tests/metrics/test_statistics.py
"""

import math
import random
from functools import partial

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from medcap.metrics.coco import METRICS
from medcap.metrics.ngrams import lcs_length
from medcap.metrics.statistics import Statistics, bootstrap, caption_statistics, paired_test, summarize_runs

WITHOUT_METEOR = [name for name in METRICS if name != "meteor"]
close = partial(pytest.approx, rel=0, abs=1e-12)


def reference_scores(predictions, references):
    """Return (corpus score, scores per image) of pycocoevalcap by metric."""
    gts, res = dict(enumerate(references)), {image: [text] for image, text in enumerate(predictions)}
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    rows = {f"bleu_{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    return rows | {"rouge_l": Rouge().compute_score(gts, res), "cider": Cider().compute_score(gts, res)}


def random_corpus(seed):
    """Return 1 to 40 images with 1 to 4 references of few words, so that n-grams repeat; some are empty or equal."""
    rng = random.Random(seed)
    words = ["ct", "mass", "of", "the", "5\u00a01/2", "liver", "-lrb-"][: rng.randint(1, 7)]

    def text():
        return " ".join(rng.choices(words, k=rng.choice([0, 1, 2, 3, 5, 8, 30])))

    references = [[text() for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 40))]
    references[0][0] = "ct mass"  # pycocoevalcap fails without any word
    return [rng.choice([text(), captions[0]]) for captions in references], references


def system(n, seed, quality=0.5):
    """Return random statistics of n images; all metrics increase with `quality`."""
    rng = np.random.default_rng(seed)
    words = rng.integers(5, 30, n)
    matches = rng.binomial(words[:, None], [quality, quality / 2, quality / 4, quality / 8])
    bleu = np.column_stack([words, words, matches, words[:, None] - np.arange(4)]).astype(float)
    rouge_l = rng.beta(10 * quality, 10 - 10 * quality, n)
    matched = words * quality
    meteor = np.column_stack([words, words, matched, matched, rng.integers(1, 5, n), 2 * matched]).astype(float)
    return Statistics(bleu, rouge_l, 10 * rouge_l**2, meteor)


def copies(statistics, times):
    return Statistics(*(np.repeat(values, times, 0) for values in vars(statistics).values()))


@pytest.mark.parametrize("seed", range(60))
def test_random_scores_equal_pycocoevalcap(seed):
    predictions, references = random_corpus(seed)
    statistics = caption_statistics(predictions, references)
    corpus, per_image = statistics.corpus(), statistics.per_image()
    assert list(corpus) == list(per_image) == WITHOUT_METEOR
    for name, (score, scores) in reference_scores(predictions, references).items():
        assert corpus[name] == close([score])
        assert per_image[name] == close(scores)


EMPTY = {  # name: predictions, references, ROUGE-L of pycocoevalcap, which reads an empty text as one empty word
    "everything": ([""], [[""]], 1.0),
    "the prediction": ([""], [["ct of the hip"]], 0.0),
    "the reference": (["ct"], [["", ""]], 0.0),
}


@pytest.mark.parametrize(("predictions", "references", "rouge_l"), EMPTY.values(), ids=EMPTY)
def test_empty_texts_are_scored_without_warning(predictions, references, rouge_l):
    with np.errstate(all="raise", under="ignore"):
        corpus = caption_statistics(predictions, references).corpus()
    assert corpus["rouge_l"] == close([rouge_l])
    assert [corpus["cider"][0], corpus["bleu_4"][0]] == pytest.approx([0, 0], abs=1e-6)


def test_captions_of_5000_words_are_scored():
    rng = random.Random(0)
    long = [" ".join(rng.choices("abcdefgh", k=5_000)) for _ in range(2)]
    rows = caption_statistics([long[0], "a"], [[long[1]], ["a b"]])
    assert rows.bleu[0].tolist()[:2] == [5_000, 5_000]
    assert rows.bleu[0].tolist()[6:] == [5_000, 4_999, 4_998, 4_997]
    assert 0.5 < rows.rouge_l[0] < 1


def test_bleu_and_rouge_statistics_computed_by_hand():
    rows = caption_statistics(
        ["the mass the mass the liver", "a b c"], [["the mass the liver", "mass of the left liver"], ["a x b"]]
    )
    # words, closest reference, matches of 1 to 4 words (each at most as often as one reference has it), n-grams
    assert rows.bleu.tolist() == [[6, 5, 4, 3, 2, 1, 6, 5, 4, 3], [3, 3, 2, 0, 0, 0, 3, 2, 1, 0]]
    # common subsequences: 4 of 6 and of 4 words; precision 4/6 and recall 4/4; then 2 of 3 and 3
    assert rows.rouge_l == close([2.44 * (4 / 6) / (1 + 1.44 * 4 / 6), 2 / 3])


def test_cider_computed_by_hand():
    rows = caption_statistics(["a b", "c"], [["a b"], ["a c"]])
    # the idf of "a" is 0, because both references have it; only "b", "a b" and "c" count
    assert rows.cider == close([10 * 2 / 4, 10 * math.exp(-1 / 72) / 4])


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [("", "abc", 0), ("abc", "", 0), ("abc", "abc", 3), ("abcbdab", "bdcaba", 4), ("ab" * 40, "ba" * 40, 79)],
)
def test_longest_common_subsequence(first, second, length):
    assert lcs_length(first, second) == lcs_length(second, first) == length


# answers of METEOR 1.5 to SCORE: stems; a caption equal to its reference; the best of two references; an empty
# prediction; no match; only function words. The last three lines are invented, with matches of all modules.
METEOR_LINES = [
    "8 9 1 1 4 4 1 1 1 1 0 0 0 0 0 0 0 0 0 0 3 6 6",
    "4 4 2 2 2 2 2 2 0 0 0 0 0 0 0 0 0 0 0 0 1 4 4",
    "9 5 5 1 2 2 1 1 1 1 0 0 0 0 0 0 0 0 0 0 2 4 4",
    "0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    "2 5 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    "3 3 3 3 0 0 3 3 0 0 0 0 0 0 0 0 0 0 0 0 2 3 3",
    "20 24 6 8 5 5 2 3 2 2 1 1 3 4 1 0 2 3 1 2 6 17 20",
    "9 9 2 2 7 7 2 2 0 0 0 0 0 0 0 0 0 0 0 0 1 9 9",
    "12 7 3 2 1 1 0 0 0 0 0 0 2 2 0 0 3 2 1 1 4 7 6",
]
# its answers to EVAL for the first six, and for the last three
METEOR_SCORES = [0.28796378810307205, 1, 0.3090803695438577, 0, 0, 0.4467352531109634]
METEOR_CORPUS = 0.26691009928499715
INVENTED_SCORES, INVENTED_CORPUS = [0.3580293262058898, 1, 0.2976772550383421], 0.399435651411539


@pytest.mark.parametrize(
    ("lines", "scores", "corpus"),
    [(METEOR_LINES[:6], METEOR_SCORES, METEOR_CORPUS), (METEOR_LINES[6:], INVENTED_SCORES, INVENTED_CORPUS)],
    ids=["captions", "all modules"],
)
def test_meteor_equals_java(lines, scores, corpus):
    rows = caption_statistics(["a"] * len(lines), [["a"]] * len(lines), lines)
    assert rows.per_image()["meteor"] == close(scores)
    assert rows.corpus()["meteor"] == close([corpus])
    assert list(rows.corpus()) == list(METRICS)


def test_weights_equal_repeated_images():
    rows = system(5, 0)
    weights = [[2, 0, 1, 0, 3], [1, 1, 1, 1, 1]]
    repeated = Statistics(*(np.repeat(values, weights[0], 0) for values in vars(rows).values()))
    for name, scores in rows.corpus(weights).items():
        assert scores == close([repeated.corpus()[name][0], rows.corpus()[name][0]])


def test_interval_of_a_mean_matches_its_standard_error():
    rows = system(2_000, 0)
    error = rows.rouge_l.std() / math.sqrt(len(rows))
    low, high = bootstrap(rows, resamples=4_000)["rouge_l"]
    assert (low + high) / 2 == pytest.approx(rows.rouge_l.mean(), abs=0.1 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_interval_contains_the_score_of_every_metric():
    rows = system(300, 1)
    intervals = bootstrap(rows)
    assert list(intervals) == list(METRICS)
    assert all(low < rows.corpus()[name][0] < high for name, (low, high) in intervals.items())


def test_intervals_cover_the_true_value_in_95_percent():
    covered = 0
    for seed in range(200):
        low, high = bootstrap(system(100, seed), resamples=300, seed=seed)["rouge_l"]
        covered += low < 0.5 < high  # the mean of beta(5, 5)
    assert 180 <= covered <= 199


def test_copies_in_a_group_do_not_narrow_the_interval():
    rows = system(200, 2)
    fourfold = copies(rows, 4)
    patients = np.repeat(np.arange(200), 4).tolist()
    single, ungrouped, grouped = (
        np.diff(interval["rouge_l"])[0]
        for interval in (bootstrap(rows), bootstrap(fourfold), bootstrap(fourfold, patients))
    )
    assert grouped == close(single)  # the same groups are drawn
    assert ungrouped == pytest.approx(single / 2, rel=0.15)


def test_image_without_group_is_a_group_of_its_own():
    rows = system(50, 3)
    assert bootstrap(rows, [None] * 50) == bootstrap(rows, range(50)) == bootstrap(rows)
    assert bootstrap(rows, [None, "a"] * 25) != bootstrap(rows)


def test_equal_systems_have_p_1():
    rows = system(100, 0)
    for result in paired_test(rows, rows, trials=99).values():
        assert result == {"difference": 0, "p": 1, "low": 0, "high": 0}


def test_better_system_on_every_image_has_minimal_p():
    for name, result in paired_test(system(200, 0, quality=0.8), system(200, 1, quality=0.4), trials=999).items():
        assert result["p"] == 1 / 1000, name
        assert 0 < result["low"] < result["difference"] < result["high"]


def test_difference_on_one_image_is_not_significant():
    first = system(50, 0)
    second = Statistics(first.bleu, first.rouge_l.copy(), first.cider, first.meteor)
    second.rouge_l[7] = 0  # swapping it only changes the sign of the difference
    assert paired_test(first, second, trials=999)["rouge_l"]["p"] == 1


def test_p_of_two_images_is_exact():
    first, second = system(2, 0), system(2, 0)
    first.rouge_l[:], second.rouge_l[:] = [0.9, 0.8], [0.1, 0.5]
    # two of the four possible swaps give a difference as large
    assert paired_test(first, second, trials=20_000)["rouge_l"]["p"] == pytest.approx(0.5, abs=0.02)


def test_exchanging_systems_changes_the_signs():
    first, second = system(60, 0), system(60, 1)
    forward, backward = paired_test(first, second, trials=500), paired_test(second, first, trials=500)
    for name in METRICS:
        assert forward[name]["p"] == backward[name]["p"]
        assert forward[name]["difference"] == close(-backward[name]["difference"])
        assert forward[name]["low"] == close(-backward[name]["high"])


def test_p_is_uniform_for_equal_systems():
    tests = [paired_test(system(80, 2 * seed), system(80, 2 * seed + 1), trials=200) for seed in range(200)]
    for name in METRICS:
        p = np.array([test[name]["p"] for test in tests])
        assert abs(np.mean(p <= 0.5) - 0.5) < 0.12, name
        assert np.mean(p <= 0.05) < 0.1, name


def test_groups_are_swapped_together():
    first, second = copies(system(6, 0), 50), copies(system(6, 1), 50)
    patients = np.repeat(np.arange(6), 50).tolist()
    single, grouped = paired_test(first, second, trials=2_000), paired_test(first, second, patients, trials=2_000)
    assert single["rouge_l"]["p"] < 0.01
    assert grouped["rouge_l"]["p"] > 1 / 64  # two of the 64 possible swaps give a difference as large


def test_different_images_or_metrics_raise():
    rows = system(5, 0)
    for other in (system(6, 0), Statistics(rows.bleu, rows.rouge_l, rows.cider)):
        with pytest.raises(ValueError, match="not the same images and metrics"):
            paired_test(rows, other)


def test_results_depend_on_the_seed():
    rows, other = system(60, 0), system(60, 1)
    assert bootstrap(rows, seed=1) == bootstrap(rows, seed=1) != bootstrap(rows, seed=2)
    results = [paired_test(rows, other, trials=500, seed=seed)["rouge_l"]["p"] for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_batch_size_does_not_change_results(monkeypatch):
    rows, other = system(60, 0), system(60, 1)
    before = bootstrap(rows), paired_test(rows, other, trials=500)
    monkeypatch.setattr("medcap.metrics.statistics._BATCH", 100)
    after = bootstrap(rows), paired_test(rows, other, trials=500)
    assert after[0]["cider"] == close(before[0]["cider"])
    assert after[1]["cider"] == close(before[1]["cider"])


def test_summary_of_runs():
    runs = [{"cider": 0.2, "bleu_1": 0.5}, {"cider": 0.4, "bleu_1": 0.5}]
    assert summarize_runs(runs)["cider"] == close({"mean": 0.3, "std": math.sqrt(0.02), "n": 2})
    assert summarize_runs(runs)["bleu_1"] == {"mean": 0.5, "std": 0, "n": 2}


def test_summary_of_runs_with_different_metrics_raises():
    with pytest.raises(ValueError, match="runs with different metrics"):
        summarize_runs([{"cider": 0.1}, {"bleu_1": 0.1}])
