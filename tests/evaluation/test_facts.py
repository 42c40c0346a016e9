"""What the words of a caption say, in phrasings written for this test; each lists all that is said, kind by kind.

pytest tests/evaluation/test_facts.py
"""

import json
from pathlib import Path

import pytest

from medcap.evaluation.concept_f1 import concept_f1, synonyms
from medcap.evaluation.facts import KINDS, facts_of
from medcap.evaluation.findings import micro, score_facts

CASES = json.loads(Path(__file__).with_name("findings_cases.json").read_text(encoding="utf-8"))


def test_there_are_cases_of_every_kind():
    assert len({case["caption"] for case in CASES}) == len(CASES) >= 150
    assert {kind for case in CASES for kind in case["facts"]} == set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"] or "nothing")
def test_facts_of(case):
    assert {kind: sorted(values) for kind, values in facts_of(case["caption"]).items() if values} == case["facts"]


PREDICTIONS = ["Mass in the left kidney on CT", "Right pleural effusion", "Normal", "Left hip fracture"]
REFERENCES = ["CT: cyst of the right kidney", "Right effusion, no mass", "Both kidneys", "Left hip fracture"]


def test_facts_are_scored_over_all_images():
    scored = score_facts(PREDICTIONS, REFERENCES)
    finding = scored["kinds"]["finding"]  # said mass, effusion, fracture; true cyst, effusion, fracture
    assert finding == {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "said": 3, "true": 3}
    assert scored["kinds"]["negation"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "said": 0, "true": 1}
    assert scored["kinds"]["modality"]["f1"] == 1.0


def test_left_called_right_is_counted():
    scored = score_facts(PREDICTIONS, REFERENCES)
    assert scored["sides"]["right"] == {"left": 1, "right": 1, "both": 0, "none": 0}
    assert scored["sides"]["left"] == {"left": 1, "right": 0, "both": 0, "none": 0}
    assert scored["sides"]["both"] == {"left": 0, "right": 0, "both": 0, "none": 1}
    assert (scored["one_side"], scored["wrong_side"]) == (3, 1 / 3)
    assert score_facts(["left lung"], ["lung"])["wrong_side"] is None


def test_captions_of_other_numbers_raise():
    with pytest.raises(ValueError, match="longer"):
        score_facts(["a"], ["a", "b"])


def test_nothing_said_and_nothing_true_scores_zero():
    assert micro([(set(), set())]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "said": 0, "true": 0}


NAMES = {"C1": "Pneumonia, Viral", "C2": "Pneumonia", "C3": "Structure of pelvis", "C4": "Kidney (organ)"}


def test_synonyms_are_the_names_that_a_caption_would_use():
    assert "Viral Pneumonia" in synonyms("Pneumonia, Viral")
    assert "pelvis" in synonyms("Structure of pelvis")
    assert "Kidney" in synonyms("Kidney (organ)")


CONCEPTS = {  # prediction, concepts of the image, right, said, true
    "the longest name counts": ("viral pneumonia", ["C1"], 1, 1, 1),
    "a part of another word does not": ("pneumonias of the kidneystone", ["C2"], 1, 1, 1),
    "plural": ("both kidneys", ["C4"], 1, 1, 1),
    "twice is once": ("pneumonia and pneumonia", ["C2", "C3"], 1, 1, 2),
    "without a name it can only be missed": ("pneumonia", ["C9"], 0, 1, 1),
    "the modality is one by its words": ("CT of the pelvis", ["C0040405", "C3"], 2, 2, 2),
    "nothing": ("", ["C1"], 0, 0, 1),
}


@pytest.mark.parametrize(("caption", "cuis", "right", "said", "true"), CONCEPTS.values(), ids=CONCEPTS)
def test_concepts_in_a_prediction(caption, cuis, right, said, true):
    found = concept_f1([caption], [cuis], NAMES)
    assert (found["said"], found["true"]) == (said, true)
    assert found["f1"] == pytest.approx(2 * right / (said + true))
    assert "not comparable" in found["what"]
