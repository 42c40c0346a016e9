"""The page of an evaluation: its content, and escaping of captions.

pytest tests/reporting/test_evaluation_page.py
"""

import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest
from datasets import Dataset
from markupsafe import escape
from PIL import Image

from medcap.data.selection import FEATURES
from medcap.evaluation.baselines import LEGEND
from medcap.evaluation.evaluate import Evaluation
from medcap.evaluation.result import EvaluationResult, ImageDependence, PairedDifference, PartScores, SystemScores
from medcap.evaluation.verdict import RULE, verdict
from medcap.metrics.clinical.accuracy import score_facts
from medcap.metrics.clinical.concept_f1 import ConceptScores
from medcap.metrics.diversity import describe_captions
from medcap.metrics.signature import Signature
from medcap.metrics.statistics import METRICS
from medcap.reporting.evaluation_page import marked, write_page

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'&\u2028 {{ 7 * 7 }} {% raw %}"


def scores_of(name, score=0.2, kind=SystemScores, width=0.05, **fields):
    intervals = dict.fromkeys(METRICS, (score - width, score + width))
    return kind(name=name, n=3, metrics=dict.fromkeys(METRICS, score), intervals=intervals, **fields)


def result(score=0.5, captions=("a",), references=("a",), **changes):
    part = PartScores(
        value=HOSTILE, n=3, metrics=dict.fromkeys(METRICS, 0.1), intervals=dict.fromkeys(METRICS, (0, 1))
    )
    summary = replace(describe_captions(captions), length_ratio=1.0, brevity_penalty=1.0, cut_fraction=0.0)
    fields = {
        "model": HOSTILE, "split": "test", "signature": Signature.of(metrics="coco", text="<b>"), "captions": summary,
        "facts": score_facts(captions, references), "baselines": {"constant": scores_of("constant", caption=HOSTILE)},
        "breakdown": {"modality": [part], "length": []}, **changes,
    }  # fmt: skip
    return scores_of(HOSTILE, score, EvaluationResult, **fields)


def page_of(tmp_path, captions, references, per_image=None, **changes):
    columns = {name: [None] * len(captions) for name in FEATURES}
    columns |= {
        "image_id": [f"i{number}" for number in range(len(captions))], "caption": references,
        "image": [Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(len(captions))],
    }  # fmt: skip
    scores = per_image or {name: [float(number) for number in range(len(captions))] for name in METRICS}
    evaluation = Evaluation(result(captions=captions, references=references, **changes), list(captions), scores)
    write_page(tmp_path / "report.html", evaluation, Dataset.from_dict(columns, features=FEATURES))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def table_of(page):
    return json.loads(re.search(r'<script type="application/json" id="table">(.*?)</script>', page, re.S)[1])


def test_captions_are_escaped(tmp_path):
    page = page_of(tmp_path, [HOSTILE, "b"], ["a", HOSTILE])
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    assert [line[:3] for line in table_of(page)] == [["i0", "a", HOSTILE], ["i1", HOSTILE, "b"]]
    assert not list(tmp_path.glob("*.part"))


def test_page_is_self_contained(tmp_path):
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg)', page_of(tmp_path, ["a"], ["b"])) == []
    assert not re.search("https?:", page_of(tmp_path, ["a"], ["b"]))


def test_best_and_worst_are_chosen_by_cider(tmp_path):
    n = 30
    scores = {name: [float((7 * number) % n) for number in range(n)] for name in METRICS}
    page = page_of(tmp_path, [f"prediction {number}" for number in range(n)], ["reference"] * n, scores)
    best, worst, sample = (re.findall(r"i\d+(?= &middot;)", part) for part in page.split('<div class="cards">')[1:])
    order = [f"i{number}" for number in sorted(range(n), key=lambda number: -scores["cider"][number])]
    assert best == order[:12]
    assert worst == order[::-1][:12]
    assert len(set(sample)) == 24


def test_different_words_are_marked():
    reference, prediction = marked("CT of the left <kidney>.", "CT of a right <kidney>")
    assert reference == "CT of <del>the left</del> &lt;kidney&gt;."
    assert prediction == "CT of <ins>a right</ins> &lt;kidney&gt;"
    assert marked("", "a") == ("", "<ins>a</ins>")


VERDICTS = {  # difference to the baseline, whether it is significant, judgement, words of the statement
    "above": (0.3, True, "good", "CIDEr 0.500 is above the baseline constant, 0.200"),
    "below": (-0.3, True, "bad", "CIDEr 0.500 is below the baseline constant, 0.800"),
    "neither": (0.3, False, "unsure", "CIDEr 0.500 is not significantly different from the baseline constant, 0.200"),
}


def difference_to(name, difference, significant, first=HOSTILE):
    numbers = {"difference": difference, "p": 0.01, "low": difference - 0.1, "high": difference + 0.1}
    return PairedDifference(first=first, second=name, metric="cider", significant=significant, **numbers)


@pytest.mark.parametrize(("difference", "significant", "judgement", "words"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_against_a_baseline(difference, significant, judgement, words):
    own = difference_to("constant", difference, significant)
    [statement] = verdict(result(facts=None, tests=[own]))
    assert statement.judgement == judgement
    assert words in statement.text
    turned = difference_to(HOSTILE, -difference, significant, first="constant")  # of a comparison
    other = difference_to("another system", 0.1, True)
    assert verdict(result(facts=None), [turned, other]) == [statement]


@pytest.mark.parametrize(
    ("depends", "judgement", "words"),
    [
        (True, "good", "The captions depend on the image"),
        (False, "bad", "The captions do not depend on the image"),
        (None, "unsure", "There are too few images to tell"),
    ],
)
def test_verdict_on_image_dependence(depends, judgement, words):
    shuffled = scores_of("shuffled images", 0.5, ImageDependence, test={}, depends_on_image=depends)
    [statement] = verdict(result(0.5, baselines={}, facts=None, shuffled_images=shuffled))
    assert statement.judgement == judgement
    assert statement.text.startswith(words)


def test_the_page_states_the_rule_and_why_a_baseline_is_left_out(tmp_path):
    tests = [difference_to("constant", 0.3, True)]
    page = page_of(tmp_path, ["a"], ["b"], tests=tests, omitted={"constant-modality": "of <b>"})
    assert str(escape(RULE)) in page
    assert "<li>constant-modality: left out, because of &lt;b&gt;</li>" in page
    assert f"<li>constant: {LEGEND['constant']}" in page


def test_verdict_on_a_wrong_side():
    captions, references = ["left lung"] * 4, ["right lung", "left lung", "left lung", "lung"]
    [statement] = verdict(result(captions=captions, references=references, baselines={}))
    assert statement.judgement == "bad"
    assert "33.3% of the 3 captions" in statement.text


def test_only_measured_parts_are_shown(tmp_path):
    page = page_of(tmp_path, ["a"], ["b"], baselines={}, breakdown={"modality": [], "length": []})
    assert "By modality" not in page
    assert "concepts *" not in page
    concepts = ConceptScores(0.5, 0.5, 0.5, 1, 2, "by names", 0.25)
    shown = page_of(tmp_path, ["a"], ["b"], concepts=concepts)
    assert "concepts *" in shown
    assert "of the images: 0.250." in shown
    assert "By modality" in shown


def test_policy_of_the_page_allows_only_its_own_script(tmp_path):
    page = page_of(tmp_path, [HOSTILE, "b"], ["a", HOSTILE])
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)[1]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert directives == {
        "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'", "base-uri": "'none'",
        "form-action": "'none'", "script-src": f"'sha256-{digest}'",
    }  # fmt: skip
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "getElementById" in script
