"""Facts extracted from captions, against those of a human reader; and their precision and recall."""

import json
from collections import Counter
from pathlib import Path

import pytest

from medcap.metrics.clinical.accuracy import LATERALITIES, micro_average, score_facts
from medcap.metrics.clinical.facts import KINDS, extract_facts
from medcap.metrics.clinical.lexicon import FINDINGS
from medcap.metrics.clinical.regions import REGIONS

CASES = json.loads(Path(__file__).with_name("findings_cases.json").read_text(encoding="utf-8"))

PREDICTIONS = ["CT: mass in the left lung", "effusion on the left, no mass", "bilateral effusions", "cyst"]
REFERENCES = [
    "CT: mass in the right lung",
    "effusion on the left, no mass",
    "effusion",
    "cysts and a stone, both kidneys",
]


@pytest.mark.parametrize("case", CASES, ids=[case["caption"] for case in CASES])
def test_extracted_facts_are_those_of_the_reader(case):
    said = {kind: sorted(values) for kind, values in extract_facts(case["caption"]).items() if values}
    assert said == {kind: sorted(values) for kind, values in case["facts"].items()}


def test_the_cases_cover_every_kind():
    kinds = Counter(kind for case in CASES for kind in case["facts"])
    assert len({case["caption"] for case in CASES}) == len(CASES) >= 160
    assert min(kinds[kind] for kind in KINDS) >= 20
    said = {value for case in CASES for values in case["facts"].values() for value in values}
    assert said >= set(REGIONS)
    assert len(said & set(FINDINGS)) >= 50


def test_an_empty_caption_has_an_empty_set_of_every_kind():
    assert extract_facts("") == dict.fromkeys(KINDS, frozenset())


def test_a_finding_may_be_present_and_denied_in_one_caption():
    facts = extract_facts("Stone in the left kidney. No stone in the right kidney.")
    assert facts["finding"] == facts["negation"] == {"stone"}


def test_white_space_and_the_hyphens_of_publishers_do_not_matter():
    assert extract_facts("X‐ray:  left‑sided\npneumothorax") == extract_facts("X-ray: left-sided pneumothorax")


@pytest.mark.parametrize(
    ("kind", "right", "said", "true"),
    [("laterality", 1, 4, 4), ("finding", 4, 4, 5), ("negation", 1, 1, 1), ("modality", 1, 1, 1), ("number", 0, 0, 0)],
)
def test_precision_recall_and_f1_of_each_kind(kind, right, said, true):
    scores = score_facts(PREDICTIONS, REFERENCES).kinds[kind]
    assert (scores.predicted, scores.reference) == (said, true)
    assert scores.precision == pytest.approx(right / said if said else 0)
    assert scores.recall == pytest.approx(right / true if true else 0)
    assert scores.f1 == pytest.approx(2 * right / (said + true) if said else 0)


def test_sides_are_counted_by_side_of_the_reference():
    sides = score_facts(PREDICTIONS, REFERENCES).sides
    counted = {(true, said): sides[true][said] for true in LATERALITIES for said in LATERALITIES if sides[true][said]}
    assert counted == {("right", "left"): 1, ("left", "left"): 1, ("none", "both"): 1, ("both", "none"): 1}


def test_wrong_side_is_a_fraction_of_captions_where_both_name_one_side():
    scores = score_facts(PREDICTIONS, REFERENCES)
    assert (scores.wrong_side, scores.one_side) == (0.5, 2)


def test_without_any_side_none_is_wrong():
    scores = score_facts(["a mass"], ["a mass on the left"])
    assert (scores.wrong_side, scores.one_side) == (None, 0)


def test_lists_of_different_length_raise():
    with pytest.raises(ValueError, match="zip"):
        score_facts(["a mass"], [])


@pytest.mark.parametrize(("said", "true"), [(set(), set()), ({"a"}, set()), (set(), {"a"})])
def test_undefined_precision_and_recall_are_0(said, true):
    scores = micro_average([(said, true)])
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)
    assert (scores.predicted, scores.reference) == (len(said), len(true))


def test_micro_average_pools_all_pairs():
    scores = micro_average([({"a", "b", "c"}, {"a"}), ({"a"}, {"a", "b"})])
    assert (scores.precision, scores.recall, scores.f1) == (2 / 4, 2 / 3, 4 / 7)
