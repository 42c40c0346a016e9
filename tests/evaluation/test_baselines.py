"""The constant caption is the best one by exhaustive search with pycocoevalcap.

pytest tests/evaluation/test_baselines.py
"""

import random

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from medcap.evaluation import baselines
from medcap.evaluation.baselines import constant_caption, shuffled
from medcap.metrics.ngrams import count_ngrams, mean_cider_d, tf_idf

IMAGING = ["Chest X-ray", "Axial CT", "CT scan of the abdomen", "Ultrasound"]
FINDINGS = ["pleural effusion", "a mass", "a mass in the liver", "free air", "no fracture"]
SIDES = ["(arrow)", "on the left side", "on the right side", "in a 60-year-old woman with fever and night sweats"]


def captions(n, seed):
    choose = random.Random(seed).choice
    return [f"{choose(IMAGING)} shows {choose(FINDINGS)} {choose(SIDES)}." for _ in range(n)]


def mean_cider(tokens, constant):
    references = {image: [text] for image, text in enumerate(tokens)}
    return float(Cider().compute_score(references, {image: [constant] for image in references})[0])


@pytest.fixture
def without_java(monkeypatch):
    """Tokenize without Java."""
    monkeypatch.setattr(baselines, "tokenize", lambda texts: [" ".join(text.lower().split()) for text in texts])


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("seed", range(3))
def test_constant_caption_is_the_best_by_pycocoevalcap(seed):
    training = captions(40, seed)
    tokens = baselines.tokenize(training)
    best = constant_caption(training, candidates=5)
    scores = {text: mean_cider(tokens, text.lower()) for text in training}
    assert best in training
    assert scores[best] == pytest.approx(max(scores.values()), abs=1e-9)


def test_mean_cider_d_equals_pycocoevalcap():
    tokens = [text.lower() for text in [*captions(20, 0), "ct", "", "a a a a a b"]]
    words = np.array([len(text.split()) for text in tokens])
    image, every = np.arange(len(tokens)), np.ones(len(tokens), bool)
    orders = [tf_idf(counts, image, every) for counts in count_ngrams(" ".join(tokens).split(), words)]
    scores = [mean_cider_d(orders, np.maximum(words - 1, 0), row) for row in image]
    assert scores == pytest.approx([mean_cider(tokens, text) for text in tokens], abs=1e-12)


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
    result = shuffled(references, seed)
    assert sorted(result) == sorted(references)
    assert all(own != other for own, other in zip(references, result, strict=True))
    assert result == shuffled(references, seed)


def test_seed_changes_the_shuffle():
    references = [f"caption {image}" for image in range(50)]
    assert shuffled(references, 0) != shuffled(references, 1)


@pytest.mark.parametrize("references", [[], ["a"], "ab"])
def test_shuffle_of_fewer_than_two_raises(references):
    with pytest.raises(ValueError, match="at least two references, got"):
        shuffled(references)
