"""The page of an evaluation: what it shows, and that no caption can break out of it.

pytest tests/evaluation/test_page.py
"""

import json
import re

import pytest
from datasets import Dataset
from PIL import Image

from medcap.data.selection import FEATURES
from medcap.metrics.clinical.accuracy import score_facts
from medcap.metrics.statistics import METRICS
from medcap.reporting.evaluation_page import marked, verdict, write_page

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'&\u2028 {{ 7 * 7 }} {% raw %}"


def row(score, width=0.05):
    return {
        "n": 3,
        "metrics": dict.fromkeys(METRICS, score),
        "intervals": {name: [score - width, score + width] for name in METRICS},
    }


def result(score=0.5, captions=("a",), references=("a",), **changes):
    described = {
        "distinct": 1, "most_frequent": captions[0], "most_frequent_share": 1.0, "mean_words": 1.0,
        "length_ratio": 1.0, "brevity_penalty": 1.0, "repeated_share": 0.0, "cut_fraction": 0.0,
    }  # fmt: skip
    return {
        "name": HOSTILE, "model": HOSTILE, "split": "test", "signature": HOSTILE, **row(score), "captions": described,
        "facts": score_facts(captions, references), "baselines": {"constant": {**row(0.2), "caption": HOSTILE}},
        "breakdown": {"modality": [{"value": HOSTILE, **row(0.1)}], "length": []}, **changes,
    }  # fmt: skip


def page_of(tmp_path, captions, references, per_image=None, **changes):
    columns = {name: [None] * len(captions) for name in FEATURES}
    columns |= {
        "image_id": [f"i{number}" for number in range(len(captions))], "caption": references,
        "image": [Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(len(captions))],
    }  # fmt: skip
    scores = per_image or {name: [float(number) for number in range(len(captions))] for name in METRICS}
    content = result(captions=captions, references=references, **changes)
    write_page(tmp_path / "report.html", content, Dataset.from_dict(columns, features=FEATURES), captions, scores)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def table_of(page):
    return json.loads(re.search(r'<script type="application/json" id="table">(.*?)</script>', page, re.S)[1])


def test_no_caption_breaks_out_of_the_page(tmp_path):
    page = page_of(tmp_path, [HOSTILE, "b"], ["a", HOSTILE])
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    assert [line[:3] for line in table_of(page)] == [["i0", "a", HOSTILE], ["i1", HOSTILE, "b"]]
    assert not list(tmp_path.glob("*.part"))


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg)', page_of(tmp_path, ["a"], ["b"])) == []
    assert "http" not in page_of(tmp_path, ["a"], ["b"])


def test_best_and_worst_are_told_by_cider(tmp_path):
    n = 30
    scores = {name: [float((7 * number) % n) for number in range(n)] for name in METRICS}
    page = page_of(tmp_path, [f"said {number}" for number in range(n)], ["there"] * n, scores)
    best, worst, some = (re.findall(r"i\d+(?= &middot;)", part) for part in page.split('<div class="cards">')[1:])
    order = [f"i{number}" for number in sorted(range(n), key=lambda number: -scores["cider"][number])]
    assert best == order[:12]
    assert worst == order[::-1][:12]
    assert len(set(some)) == 24


def test_words_that_differ_are_marked():
    reference, prediction = marked("CT of the left <kidney>.", "CT of a right <kidney>")
    assert reference == "CT of <del>the left</del> &lt;kidney&gt;."
    assert prediction == "CT of <ins>a right</ins> &lt;kidney&gt;"
    assert marked("", "a") == ("", "<ins>a</ins>")


VERDICTS = {  # CIDEr, baseline's, mark, words
    "above": (0.5, 0.2, "good", "is above the baseline constant"),
    "below": (0.1, 0.4, "bad", "is below the baseline constant"),
    "overlap": (0.25, 0.2, "unsure", "the intervals overlap"),
}


@pytest.mark.parametrize(("mine", "theirs", "mark", "words"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_against_a_baseline(mine, theirs, mark, words):
    [(found, line)] = verdict(result(mine, baselines={"constant": row(theirs)}))
    assert found == mark
    assert words in line


def test_verdict_on_a_model_that_does_not_look():
    wrong = {**row(0.5), "test": {}, "looks": False}
    assert verdict(result(0.5, baselines={}, wrong_pictures=wrong))[0][1].startswith("The model DOES NOT LOOK")
    assert verdict(result(0.5, baselines={}, wrong_pictures={**wrong, "looks": True}))[0][0] == "good"


def test_verdict_on_a_wrong_side():
    captions, references = ["left lung"] * 4, ["right lung", "left lung", "left lung", "lung"]
    [(mark, line)] = verdict(result(captions=captions, references=references, baselines={}))
    assert mark == "bad"
    assert "33.3% of the 3 captions" in line


def test_what_was_not_measured_has_no_place(tmp_path):
    page = page_of(tmp_path, ["a"], ["b"], baselines={}, breakdown={"modality": [], "length": []})
    assert "By modality" not in page
    assert "concepts *" not in page
    shown = page_of(tmp_path, ["a"], ["b"], concepts={**dict.fromkeys(("precision", "recall", "f1"), 0.5), "said": 1,
                    "true": 2, "what": "by names"})  # fmt: skip
    assert "concepts *" in shown
    assert "By modality" in shown
