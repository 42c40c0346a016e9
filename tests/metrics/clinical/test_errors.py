"""Factual errors are counted by kind against the captions where they can occur, with examples.

pytest tests/metrics/clinical/test_errors.py
"""

import pytest

from medcap.metrics.clinical.errors import EXAMPLES, FailureExample, find_failures

# caption, reference, its CIDEr
PAIRS = [
    ("CT showing a cyst in the left kidney.", "CT showing a cyst in the right kidney, in a rare view.", 0.5),
    ("CT showing a cyst in the left kidney.", "CT showing a mass in the left kidney.", 0.4),
    ("MRI showing no mass.", "CT showing a mass.", 0.1),
    ("X-ray of the chest.", "Normal X-ray of the chest.", 9.0),
    ("X-ray of the chest with a fracture.", "X-ray of the chest with a fracture.", 10.0),
]


def failures(pairs=PAIRS):
    captions, references, scores = zip(*pairs, strict=True)
    return find_failures(captions, references, scores)


@pytest.mark.parametrize(
    ("kind", "count", "of"),
    [("wrong modality", 1, 5), ("wrong side", 1, 2), ("invented finding", 1, 3), ("missed finding", 2, 4),
     ("denied finding", 1, 1)],
)  # fmt: skip
def test_each_kind_is_counted_where_it_can_occur(kind, count, of):
    assert (failures()[kind].count, failures()[kind].of) == (count, of)


def test_examples_contain_wrong_values_and_those_of_the_reference():
    assert failures()["wrong side"].examples == [FailureExample(PAIRS[0][0], ["left"], ["right"])]
    assert failures()["missed finding"].examples == [
        FailureExample(PAIRS[2][0], ["none"], ["mass"]),
        FailureExample(PAIRS[1][0], ["cyst"], ["mass"]),
    ]


def test_denied_finding_is_prefixed_with_no():
    assert failures()["denied finding"].examples[0].predicted == ["no mass"]


def test_denying_a_finding_not_in_the_reference_is_not_an_error():
    assert find_failures(["CT showing no mass."], ["CT of the chest."], [0.0])["denied finding"].count == 0


def test_references_are_not_quoted():
    assert "rare view" not in repr(failures())


def test_examples_are_distinct_and_sorted_by_score():
    many = [(f"CT with a cyst {number // 2}.", "CT of nothing.", -number) for number in range(12)]
    shown = [example.caption for example in failures(many)["invented finding"].examples]
    assert shown == [f"CT with a cyst {number}." for number in (5, 4, 3)]
    assert len(shown) == EXAMPLES
    assert failures(many)["invented finding"].count == 12


def test_kinds_that_cannot_occur_are_absent():
    assert find_failures(["An image."], ["An image."], [0.0]) == {}


def test_mismatched_lengths_raise():
    with pytest.raises(ValueError, match="shorter"):
        find_failures(["a", "b"], ["a"], [1.0, 2.0])
