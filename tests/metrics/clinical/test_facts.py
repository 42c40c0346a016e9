"""What captions say, judged by a reader; and the figures of one caption's facts against another's."""

import json
from collections import Counter
from pathlib import Path

import pytest

from medcap.metrics.clinical.accuracy import SIDES, micro, score_facts
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
def test_a_caption_says_what_its_reader_understands(case):
    said = {kind: sorted(values) for kind, values in extract_facts(case["caption"]).items() if values}
    assert said == {kind: sorted(values) for kind, values in case["facts"].items()}


def test_the_cases_are_many_and_cover_every_kind():
    kinds = Counter(kind for case in CASES for kind in case["facts"])
    assert len({case["caption"] for case in CASES}) == len(CASES) >= 160
    assert min(kinds[kind] for kind in KINDS) >= 20
    said = {value for case in CASES for values in case["facts"].values() for value in values}
    assert said >= set(REGIONS)
    assert len(said & set(FINDINGS)) >= 50


def test_every_kind_is_there_in_a_caption_that_says_nothing():
    assert extract_facts("") == dict.fromkeys(KINDS, frozenset())


def test_a_finding_may_be_there_and_absent_in_one_caption():
    facts = extract_facts("Stone in the left kidney. No stone in the right kidney.")
    assert facts["finding"] == facts["negation"] == {"stone"}


def test_white_space_and_the_hyphens_of_publishers_do_not_matter():
    assert extract_facts("X‐ray:  left‑sided\npneumothorax") == extract_facts("X-ray: left-sided pneumothorax")


@pytest.mark.parametrize(
    ("kind", "right", "said", "true"),
    [("laterality", 1, 4, 4), ("finding", 4, 4, 5), ("negation", 1, 1, 1), ("modality", 1, 1, 1), ("number", 0, 0, 0)],
)
def test_precision_recall_and_f1_of_each_kind(kind, right, said, true):
    scores = score_facts(PREDICTIONS, REFERENCES)["kinds"][kind]
    assert (scores["said"], scores["true"]) == (said, true)
    assert scores["precision"] == pytest.approx(right / said if said else 0)
    assert scores["recall"] == pytest.approx(right / true if true else 0)
    assert scores["f1"] == pytest.approx(2 * right / (said + true) if said else 0)


def test_sides_are_counted_by_what_the_reference_says():
    sides = score_facts(PREDICTIONS, REFERENCES)["sides"]
    counted = {(true, said): sides[true][said] for true in SIDES for said in SIDES if sides[true][said]}
    assert counted == {("right", "left"): 1, ("left", "left"): 1, ("none", "both"): 1, ("both", "none"): 1}


def test_the_wrong_side_is_a_share_of_captions_where_both_name_one():
    scores = score_facts(PREDICTIONS, REFERENCES)
    assert (scores["wrong_side"], scores["one_side"]) == (0.5, 2)


def test_without_any_side_none_is_wrong():
    scores = score_facts(["a mass"], ["a mass on the left"])
    assert (scores["wrong_side"], scores["one_side"]) == (None, 0)


def test_captions_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        score_facts(["a mass"], [])


@pytest.mark.parametrize(("said", "true"), [(set(), set()), ({"a"}, set()), (set(), {"a"})])
def test_where_there_is_nothing_to_divide_by_micro_is_0(said, true):
    scores = micro([(said, true)])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0, 0, 0)
    assert (scores["said"], scores["true"]) == (len(said), len(true))


def test_micro_pools_all_pairs():
    scores = micro([({"a", "b", "c"}, {"a"}), ({"a"}, {"a", "b"})])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (2 / 4, 2 / 3, 4 / 7)
