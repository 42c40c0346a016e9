"""Extracted facts match hand labels; precision and recall of facts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from medcap.data.terms import IGNORED, read_rows
from medcap.metrics.clinical.accuracy import LATERALITIES, micro_average, score_facts
from medcap.metrics.clinical.facts import KINDS, extract_facts

REGIONS, FINDINGS = ({row["term"] for row in read_rows(kind)} - {IGNORED} for kind in ("region", "finding"))
CASES = json.loads(Path(__file__).with_name("findings_cases.json").read_text(encoding="utf-8"))

PREDICTIONS = ["CT: mass in the left lung", "effusion on the left, no mass", "bilateral effusions", "cyst"]
REFERENCES = [
    "CT: mass in the right lung",
    "effusion on the left, no mass",
    "effusion",
    "cysts and a stone, both kidneys",
]


@pytest.mark.parametrize("case", CASES, ids=[case["caption"] for case in CASES])
def test_extract_facts_matches_hand_labels(case):
    facts = {kind: sorted(values) for kind, values in extract_facts(case["caption"]).items() if values}
    assert facts == {kind: sorted(values) for kind, values in case["facts"].items()}


def test_cases_cover_every_kind():
    kinds = Counter(kind for case in CASES for kind in case["facts"])
    assert len({case["caption"] for case in CASES}) == len(CASES) >= 160
    assert min(kinds[kind] for kind in KINDS) >= 20
    labels = {value for case in CASES for values in case["facts"].values() for value in values}
    assert labels >= REGIONS
    assert len(labels & FINDINGS) >= 60


def test_empty_caption_has_no_facts():
    assert extract_facts("") == dict.fromkeys(KINDS, frozenset())


def test_finding_may_be_present_and_negated_in_one_caption():
    facts = extract_facts("Stone in the left kidney. No stone in the right kidney.")
    assert facts["finding"] == facts["negation"] == {"stone"}


def test_whitespace_and_hyphen_characters_do_not_matter():
    assert extract_facts("X‐ray:  left‑sided\npneumothorax") == extract_facts("X-ray: left-sided pneumothorax")


@pytest.mark.parametrize(
    ("kind", "correct", "predicted", "reference"),
    [("laterality", 1, 4, 4), ("finding", 4, 4, 5), ("negation", 1, 1, 1), ("modality", 1, 1, 1), ("number", 0, 0, 0)],
)
def test_precision_recall_and_f1_of_each_kind(kind, correct, predicted, reference):
    scores = score_facts(PREDICTIONS, REFERENCES).kinds[kind]
    assert (scores.predicted, scores.reference) == (predicted, reference)
    assert scores.precision == pytest.approx(correct / predicted if predicted else 0)
    assert scores.recall == pytest.approx(correct / reference if reference else 0)
    assert scores.f1 == pytest.approx(2 * correct / (predicted + reference) if predicted else 0)


def test_confusion_matrix_of_sides():
    sides = score_facts(PREDICTIONS, REFERENCES).sides
    counts = {(row, column): sides[row][column] for row in LATERALITIES for column in LATERALITIES}
    assert {pair: n for pair, n in counts.items() if n} == {
        ("right", "left"): 1,
        ("left", "left"): 1,
        ("none", "both"): 1,
        ("both", "none"): 1,
    }


def test_wrong_side_is_a_fraction_of_captions_with_one_side_in_both():
    scores = score_facts(PREDICTIONS, REFERENCES)
    assert (scores.wrong_side, scores.one_side) == (0.5, 2)


def test_wrong_side_is_none_without_sides():
    scores = score_facts(["a mass"], ["a mass on the left"])
    assert (scores.wrong_side, scores.one_side) == (None, 0)


def test_mismatched_lengths_raise():
    with pytest.raises(ValueError, match="zip"):
        score_facts(["a mass"], [])


@pytest.mark.parametrize(("predicted", "reference"), [(set(), set()), ({"a"}, set()), (set(), {"a"})])
def test_undefined_precision_and_recall_are_0(predicted, reference):
    scores = micro_average([(predicted, reference)])
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)
    assert (scores.predicted, scores.reference) == (len(predicted), len(reference))


def test_micro_average_pools_all_pairs():
    scores = micro_average([({"a", "b", "c"}, {"a"}), ({"a"}, {"a", "b"})])
    assert (scores.precision, scores.recall, scores.f1) == (2 / 4, 2 / 3, 4 / 7)
