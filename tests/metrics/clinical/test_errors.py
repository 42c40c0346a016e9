"""What captions get wrong is counted against what could be wrong, and shown in the model's own words.

pytest tests/evaluation/test_failures.py
"""

import json

import pytest

from medcap.metrics.clinical.errors import EXAMPLES, failures

# caption, reference, its CIDEr
PAIRS = [
    ("CT showing a cyst in the left kidney.", "CT showing a cyst in the right kidney, in a rare view.", 0.5),
    ("CT showing a cyst in the left kidney.", "CT showing a mass in the left kidney.", 0.4),
    ("MRI showing no mass.", "CT showing a mass.", 0.1),
    ("X-ray of the chest.", "Normal X-ray of the chest.", 9.0),
    ("X-ray of the chest with a fracture.", "X-ray of the chest with a fracture.", 10.0),
]


def found(pairs=PAIRS):
    captions, references, scores = zip(*pairs, strict=True)
    return failures(captions, references, scores)


@pytest.mark.parametrize(
    ("kind", "count", "of"),
    [("wrong modality", 1, 5), ("wrong side", 1, 2), ("invented finding", 1, 3), ("missed finding", 2, 4),
     ("denied finding", 1, 1)],
)  # fmt: skip
def test_each_kind_is_counted_where_it_could_be(kind, count, of):
    assert (found()[kind]["count"], found()[kind]["of"]) == (count, of)


def test_examples_say_what_is_wrong_in_them_and_what_the_reference_names():
    assert found()["wrong side"]["examples"] == [{"caption": PAIRS[0][0], "said": ["left"], "true": ["right"]}]
    assert found()["missed finding"]["examples"] == [
        {"caption": PAIRS[2][0], "said": ["none"], "true": ["mass"]},
        {"caption": PAIRS[1][0], "said": ["cyst"], "true": ["mass"]},
    ]


def test_a_finding_that_is_denied_reads_as_one():
    assert found()["denied finding"]["examples"][0]["said"] == ["no mass"]


def test_what_is_denied_of_a_silent_reference_is_no_error():
    assert failures(["CT showing no mass."], ["CT of the chest."], [0.0])["denied finding"]["count"] == 0


def test_no_reference_is_quoted():
    assert "rare view" not in json.dumps(found())


def test_the_worst_come_first_and_none_twice():
    many = [(f"CT with a cyst {number // 2}.", "CT of nothing.", -number) for number in range(12)]
    shown = [example["caption"] for example in found(many)["invented finding"]["examples"]]
    assert shown == [f"CT with a cyst {number}." for number in (5, 4, 3)]
    assert len(shown) == EXAMPLES
    assert found(many)["invented finding"]["count"] == 12


def test_what_could_not_be_wrong_is_not_there():
    assert failures(["A picture."], ["A picture."], [0.0]) == {}


def test_lists_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        failures(["a", "b"], ["a"], [1.0, 2.0])
