"""The constant caption is the best one by exhaustive search with pycocoevalcap.

pytest tests/evaluation/test_baselines.py
"""

import random

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from medcap.evaluation import caption_vectors
from medcap.evaluation.baselines import constant_captions, shuffled
from medcap.evaluation.caption_vectors import CaptionVectors
from medcap.metrics.ngrams import cider_d_to_all, count_ngrams, mutual_cider_d, tf_idf

IMAGING = ["Chest X-ray", "Axial CT", "CT scan of the abdomen", "Ultrasound"]
FINDINGS = ["pleural effusion", "a mass", "a mass in the liver", "free air", "no fracture"]
SIDES = ["(arrow)", "on the left side", "on the right side", "in a 60-year-old woman with fever and night sweats"]


def constant_caption(captions, groups=None, candidates=100):
    return constant_captions(captions, groups, candidates=candidates)[None]


def captions(n, seed):
    choose = random.Random(seed).choice
    return [f"{choose(IMAGING)} shows {choose(FINDINGS)} {choose(SIDES)}." for _ in range(n)]


def mean_cider(tokens, constant):
    references = {image: [text] for image, text in enumerate(tokens)}
    return float(Cider().compute_score(references, {image: [constant] for image in references})[0])


def split_tokens(texts):
    return [" ".join(text.lower().split()) for text in texts]


@pytest.fixture
def without_java(monkeypatch):
    """Tokenize without Java."""
    monkeypatch.setattr(caption_vectors, "tokenize", split_tokens)


def lower_mean(tokens, groups, constant):
    """Return the mean CIDEr of a caption minus its standard error, by pycocoevalcap: each caption of a group counts
    once, and the caption is scored on the groups from which it does not come, or on all if it comes from several."""
    different = list(dict.fromkeys(zip(groups, tokens, strict=True)))
    sources = {group for group, text in different if text == constant}
    references = {row: [text] for row, (_, text) in enumerate(different)}  # all of them: the idf is of all captions
    _, scores = Cider().compute_score(references, {row: [constant] for row in references})
    allowed = [score for (group, _), score in zip(different, scores, strict=True) if {group} != sources]
    return np.mean(allowed) - np.std(allowed) / np.sqrt(len(allowed))


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("seed", range(3))
def test_constant_caption_is_the_best_by_pycocoevalcap(seed):
    training = captions(60, seed)
    groups = random.Random(seed).choices(range(30), k=60)
    tokens = split_tokens(training)
    best = constant_caption(training, [f"patient {group}" for group in groups], candidates=15)
    scores = {text: lower_mean(tokens, groups, text.lower()) for text in training}
    assert best in training
    assert scores[best] == pytest.approx(max(scores.values()), abs=1e-9)


CASE = "portable film of a woman with cough who came by air from the coast"  # the caption of six images of a patient
NORMAL = [
    f"chest radiograph shows {word} lungs without consolidation" for word in ("clear", "normal", "both", "small")
]
REPEATED = [CASE] * 6 + NORMAL


@pytest.mark.usefixtures("without_java")
def test_a_caption_that_repeats_within_a_case_is_not_the_constant():
    case = [f"{CASE} {word}" for word in ("", "today", "twice", "again")]
    training, groups = [*case, *NORMAL], ["patient 1"] * 4 + [f"patient {row}" for row in range(2, 6)]
    assert constant_caption(training).startswith(CASE)  # each image for itself: captions of one case score each other
    assert constant_caption(training, groups) in NORMAL
    assert constant_caption(REPEATED) == CASE
    assert constant_caption(REPEATED, ["patient 1"] * 6 + [None] * 4) in NORMAL


@pytest.mark.usefixtures("without_java")
def test_a_caption_of_many_patients_counts_once_for_each():
    training = ["no acute finding"] * 5 + [f"{text} in the chest" for text in NORMAL]
    assert constant_caption(training, [f"patient {row}" for row in range(9)]) == "no acute finding"


@pytest.mark.usefixtures("without_java")
def test_a_caption_like_one_other_case_only_is_not_the_constant():
    twins = [f"{CASE} {word}" for word in ("today", "again")]
    assert constant_caption([*twins, *NORMAL], None) in NORMAL


@pytest.mark.usefixtures("without_java")
def test_each_modality_has_its_best_constant():
    training = [*NORMAL, "ct of the head", "ct of the head today", "ct of the knee", "a photograph"]
    modalities = ["X-ray"] * 4 + ["CT"] * 3 + [None]
    constants = constant_captions(training, modalities=modalities)
    assert constants.keys() == {None, "X-ray", "CT"}
    assert constants["X-ray"] in NORMAL
    assert constants["CT"].startswith("ct of the head")


def test_cider_d_equals_pycocoevalcap():
    tokens = [text.lower() for text in [*captions(20, 0), "ct", "", "a a a a a b"]]
    words = np.array([len(text.split()) for text in tokens])
    image, every = np.arange(len(tokens)), np.ones(len(tokens), bool)
    orders = [tf_idf(counts, image, every) for counts in count_ngrams(" ".join(tokens).split(), words)]
    scores = [cider_d_to_all(orders, words, row).mean() for row in image]
    assert scores == pytest.approx([mean_cider(tokens, text) for text in tokens], abs=1e-12)


@pytest.mark.usefixtures("without_java")
def test_mutual_cider_d_is_that_of_each_pair():
    vectors, rows = CaptionVectors.of([*captions(20, 0), "ct", "a a a a a b a"]), np.array([19, 3, 20, 21, 0])
    expected = np.array([cider_d_to_all(vectors.orders, vectors.words, row)[rows] for row in rows])
    np.fill_diagonal(expected, 0)
    assert mutual_cider_d(vectors.orders, vectors.words, rows) == pytest.approx(expected, abs=1e-12)


def test_constant_caption_is_unchanged_and_independent_of_order():
    training = ["A (CT) scan.", "a (CT) scan", "Hip X-ray.", "a (CT) scan of the hip", "Knee\u202fX-ray", " "]
    assert constant_caption(training) == "A (CT) scan."  # the second has the same tokens
    assert constant_caption(training[::-1]) == "A (CT) scan."


CONSTANTS = {  # every idf, and so every score, is 0
    "one caption": (["a b"], "a b"),
    "one word": (["ct"], "ct"),
    "all the same": (["b a", "b a"], "b a"),
    "blank captions are ignored": (["", " ", "b c", "b c"], "b c"),
    "ties by text": (["d e", "b c"], "b c"),
}


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize(("training", "expected"), CONSTANTS.values(), ids=CONSTANTS)
def test_constant_caption_of_degenerate_data(training, expected):
    assert constant_caption(training) == expected


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("training", [[], ["", " "]])
def test_constant_caption_without_words_raises(training):
    with pytest.raises(ValueError, match=f"none of the {len(training)} captions has a word"):
        constant_caption(training)


def test_constant_caption_of_str_raises():
    with pytest.raises(ValueError, match="got the text 'ct'"):
        constant_caption("ct")


def test_zero_candidates_raise():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        constant_caption(["ct"], candidates=0)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("seed", range(5))
def test_no_image_keeps_its_own_reference(n, seed):
    references = [f"caption {image}" for image in range(n)]
    result = shuffled(references, seed=seed)
    assert sorted(result) == sorted(references)
    assert all(own != other for own, other in zip(references, result, strict=True))
    assert result == shuffled(references, seed=seed)


def test_seed_changes_the_shuffle():
    references = [f"caption {image}" for image in range(50)]
    assert shuffled(references, seed=0) != shuffled(references, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_no_image_gets_a_reference_of_its_group(seed):
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + [None] * 2
    pairs = list(zip(groups, shuffled(list(enumerate(groups)), groups, seed), range(12), strict=True))
    assert sorted(row for _, (row, _), _ in pairs) == list(range(12))
    assert all(own != other if own else row != image for own, (row, other), image in pairs)


def test_no_image_of_a_single_group_keeps_its_reference():
    assert all(row != other for row, other in enumerate(shuffled(range(5), ["a"] * 5)))
    assert all(row != other for row, other in enumerate(shuffled(range(5), ["a"] * 4 + ["b"])))


@pytest.mark.parametrize("references", [[], ["a"], "ab"])
def test_shuffle_of_fewer_than_two_raises(references):
    with pytest.raises(ValueError, match="at least two references, got"):
        shuffled(references)
