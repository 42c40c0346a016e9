"""Concepts named in predictions, against the concepts of the images."""

import pytest

from medcap.metrics.clinical.concept_f1 import concept_f1, synonyms

CT, X_RAY = "C0040405", "C1306645"


def test_precision_recall_and_f1_are_pooled_over_all_captions():
    names = {"heart": "Cardiomegaly", "cyst": "Cyst", "mass": "Mass"}
    predictions = ["Chest X-ray with cardiomegaly", "CT with a mass"]
    scores = concept_f1(predictions, [[X_RAY, "heart"], [CT, "cyst", "other"]], names)
    assert (scores["said"], scores["true"]) == (4, 5)  # right are X-ray, heart and CT
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 * 3 / 9)


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
def test_a_caption_may_call_a_concept_by_its_everyday_name(name, synonym):
    assert synonym in synonyms(name)
    assert concept_f1([f"seen: {synonym.lower()}"], [["C"]], {"C": name})["recall"] == 1


def test_the_longest_name_takes_the_words():
    names = {"long": "Pleural effusion", "short": "Effusion"}
    scores = concept_f1(["a pleural effusion", "an effusion"], [["long"], ["short"]], names)
    assert (scores["said"], scores["precision"], scores["recall"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Lung nodule", "lung nodules"), ("Masses", "a mass"), ("Renal artery", "renal arteries"),
        ("Thrombus", "a thrombus"),
    ],
)  # fmt: skip
def test_number_does_not_matter(name, words):
    assert concept_f1([words], [["C"]], {"C": name})["f1"] == 1


@pytest.mark.parametrize(("name", "words"), [("Mass", "massive"), ("Left lung", "left and right lung"), ("Cyst", "")])
def test_a_name_is_found_only_as_whole_words_in_a_row(name, words):
    assert concept_f1([words], [["C"]], {"C": name})["said"] == 0


def test_a_concept_without_name_can_only_be_missed():
    scores = concept_f1(["a mass"], [["C"]], {})
    assert {key: scores[key] for key in ("precision", "recall", "f1", "said", "true")} == {
        "precision": 0, "recall": 0, "f1": 0, "said": 0, "true": 1
    }  # fmt: skip


def test_two_concepts_of_one_name_are_both_said():
    assert concept_f1(["a cyst"], [["one"]], {"one": "Cyst", "two": "Cysts"})["said"] == 2


def test_captions_and_concepts_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        concept_f1(["a mass"], [], {})
