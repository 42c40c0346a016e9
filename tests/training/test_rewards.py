"""Rewards: CIDEr-D as pycocoevalcap computes it with the idf of the training captions alone, and facts.

pytest tests/training/test_rewards.py
"""

import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from medcap.metrics.training_idf import TrainingIdf
from medcap.training.rewards import FIGURES, Rewards, caption_checks, fact_f1, reward_words

TRAIN = (
    "CT of the chest shows a mass in the left lung.",
    "CT of the abdomen shows a cyst in the right kidney.",
    "Chest radiograph without a mass.",
    "MRI of the brain.",
    "Ultrasound shows a cyst.",
)
PREDICTED = ("CT of the chest shows a cyst.", "MRI of the brain brain.", "Ultrasound of the unknown spleen.", "")


def reference_scores(train, predictions, references):
    """Return CIDEr-D of pycocoevalcap with the document frequencies of `train`.

    It takes the logarithm of the number of images that it scores, so blank ones are added.
    """
    frequencies = CiderScorer(n=4)
    for text in train:
        frequencies += ("", [text])
    frequencies.compute_doc_freq()
    scorer = CiderScorer(n=4)
    blank = [""] * (len(train) - len(predictions))
    for prediction, text in zip([*predictions, *blank], [*references, *blank], strict=True):
        scorer += (prediction, [text])
    scorer.document_frequency = frequencies.document_frequency
    return scorer.compute_cider()[: len(predictions)]


def test_cider_is_that_of_pycocoevalcap_with_the_idf_of_the_training_captions():
    split = [[text.split() for text in texts] for texts in (TRAIN, PREDICTED, TRAIN[:4])]
    own = TrainingIdf(split[0]).cider_d(split[1], split[2])
    lines = [[" ".join(words) for words in texts] for texts in split]
    assert own == pytest.approx(reference_scores(*lines), abs=1e-9)
    assert own[0] > 0


def test_idf_is_from_the_training_captions_alone():
    """Neither the captions that are scored, nor those of another split, change a score."""
    words = [text.split() for text in TRAIN]
    alone = TrainingIdf(words).cider_d(words[:1], words[1:2])
    together = TrainingIdf(words).cider_d(words[:4], words[1:5])
    assert together[0] == alone[0]
    more = TrainingIdf([*words, "CT of the chest".split()]).cider_d(words[:1], words[1:2])
    assert more[0] != pytest.approx(alone[0], rel=1e-3)


def test_rewards_are_weighted_and_none_depends_on_other_images():
    rewards = Rewards(TRAIN, {"cider": 1.0, "facts_f1": 2.0})
    scores = rewards(PREDICTED, [True] * 4, [0, 3, 4, 1])
    assert scores.keys() == set(FIGURES)
    assert scores["reward"] == pytest.approx(scores["reward_cider"] + 2 * scores["reward_facts_f1"])
    for name, value in rewards(PREDICTED[1:2], [True], [3]).items():
        assert value[0] == pytest.approx(scores[name][1]), name


def test_a_complete_caption_has_the_highest_reward():
    """One that lacks its period, was cut, repeats itself or goes on has less."""
    text = TRAIN[0]
    worse = (text.rstrip("."), text, f"{text} {text}", f"{text[:-1]} with a mass.")
    best, *others = Rewards(TRAIN)([text, *worse], [True, True, False, True, True], [0] * 5)["reward"]
    assert max(others) < best - 0.1


def test_words():
    assert reward_words("X-ray (arrow): 3.5 cm, left-sided.") == [
        "x-ray", "arrow", "3.5", "cm", "left-sided", ".", "</s>",
    ]  # fmt: skip
    assert reward_words("A cyst", has_ended=False) == ["a", "cyst"]


FACTS = {
    "all": ("CT with a cyst in the left kidney.", 1.0),
    "wrong side": ("CT with a cyst in the right kidney.", 2 / 3),
    "nothing": ("An image.", 0.0),
}


@pytest.mark.parametrize(("prediction", "f1"), FACTS.values(), ids=FACTS)
def test_fact_f1(prediction, f1):
    assert fact_f1(prediction, "CT shows a cyst in the left kidney.") == pytest.approx(f1)


def test_checks_of_an_evaluation():
    predictions = ["CT of the left lung.", "of the lung of the lung of the lung"]
    checks = caption_checks(predictions, ["CT of the left lung.", "MRI."])
    assert checks == {"facts_f1": 0.5, "repeated_fraction": 0.5, "period_fraction": 0.5}
