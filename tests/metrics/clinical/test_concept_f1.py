"""Concepts named in predictions against the concepts of the images."""

import pytest

from medcap.data.concepts import synonyms
from medcap.metrics.clinical.concept_f1 import concept_f1

CT, X_RAY = "C0040405", "C1306645"


def test_precision_recall_and_f1_are_pooled_over_all_captions():
    names = {"heart": "Cardiomegaly", "cyst": "Cyst", "mass": "Mass"}
    predictions = ["Chest X-ray with cardiomegaly", "CT with a mass"]
    scores = concept_f1(predictions, [[X_RAY, "heart"], [CT, "cyst", "other"]], names)
    assert (scores.predicted, scores.reference) == (4, 5)  # correct: X-ray, heart and CT
    assert scores.precision == pytest.approx(3 / 4)
    assert scores.recall == pytest.approx(3 / 5)
    assert scores.f1 == pytest.approx(2 * 3 / 9)


@pytest.mark.parametrize(
    ("name", "synonym"),
    [
        ("Pneumonia, Viral", "Viral Pneumonia"),
        ("Structure of pelvis", "pelvis"),
        ("Entire femur", "femur"),
        ("Liver structure", "Liver"),
        ("Mass (lesion)", "Mass"),
        ("Fracture", "Fracture"),
    ],
)
def test_synonyms_of_a_concept_are_matched(name, synonym):
    assert synonym in synonyms(name)
    assert concept_f1([f"seen: {synonym.lower()}"], [["C"]], {"C": name}).recall == 1


def test_longest_name_is_matched():
    names = {"long": "Pleural effusion", "short": "Effusion"}
    scores = concept_f1(["a pleural effusion", "an effusion"], [["long"], ["short"]], names)
    assert (scores.predicted, scores.precision, scores.recall) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Lung nodule", "lung nodules"), ("Masses", "a mass"), ("Renal artery", "renal arteries"),
        ("Thrombus", "a thrombus"),
    ],
)  # fmt: skip
def test_plural_and_singular_are_matched(name, words):
    assert concept_f1([words], [["C"]], {"C": name}).f1 == 1


@pytest.mark.parametrize(("name", "words"), [("Mass", "massive"), ("Left lung", "left and right lung"), ("Cyst", "")])
def test_name_matches_only_consecutive_complete_words(name, words):
    assert concept_f1([words], [["C"]], {"C": name}).predicted == 0


def test_mean_f1_is_over_images_and_both_empty_is_1():
    names = {"cyst": "Cyst", "mass": "Mass"}
    scores = concept_f1(["a cyst and a mass", "", "a cyst", "a mass"], [["cyst"], [], [], ["mass"]], names)
    assert scores.mean_f1 == pytest.approx((2 / 3 + 1 + 0 + 1) / 4)
    assert scores.f1 == pytest.approx(2 * 2 / (4 + 2))


def test_concept_without_name_is_never_found():
    scores = concept_f1(["a mass"], [["C"]], {})
    assert (scores.precision, scores.recall, scores.f1, scores.predicted, scores.reference) == (0, 0, 0, 0, 1)


def test_two_concepts_with_one_name_are_both_counted():
    assert concept_f1(["a cyst"], [["one"]], {"one": "Cyst", "two": "Cysts"}).predicted == 2


def test_mismatched_lengths_raise():
    with pytest.raises(ValueError, match="zip"):
        concept_f1(["a mass"], [], {})
