"""The COCO metrics equal pycocoevalcap and values computed by hand.

pytest tests/metrics/test_coco.py
"""

import ast
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluate
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor as meteor_package
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from medcap.metrics import coco_caption
from medcap.metrics.coco import METRICS, Scores, score_captions, signature, tokenize
from medcap.metrics.coco_caption import CocoCaption
from medcap.metrics.java import find_java

# cases of the PTB rules, and captions whose tokens depend on the next line ("no." before a digit)
PREDICTIONS = [
    "Chest X-ray (PA view) with a left-sided pleural effusion.",
    "",
    'Axial CT "bone window" of a fracture; 3.5 mm gap, T2-weighted',
    "the same the same the same",
    "US of the neck, lesion no.",
    "5 1/2 cm cyst \u2013 5\u00a0\u00b5m \u00d7 \u00c9TAGE [arrow] 70% <b>bold</b>",
    "INTRAHEPATIC cyst ||| of segment IV. See Fig.",
    "a mass",
]
REFERENCES = [
    ["Chest radiograph (AP view) shows a left-sided pleural effusion (arrow)."],
    ["Normal study.", "No abnormality of the hip"],
    ["Axial CT in bone window: fracture with a gap of 3.5 mm."],
    ["\u202f"],
    ["Ultrasound of the neck with lesion no.", "4 lesions of the neck"],
    ["Cyst of 5 1/2 cm; \u00c9tage 2, \u00b5m scale"],
    ["Hepatic cyst in segment IV ||| arrow.", "intrahepatic cysts"],
    ["mass in the U.S.", "The 'mass' isn't large..."],
]
WITHOUT_METEOR = [name for name in METRICS if name != "meteor"]


def reference_scores(predictions, references, meteor):
    """Score with pycocoevalcap only."""
    captions = {i: [{"caption": text} for text in texts] for i, texts in enumerate(references)}
    gts = ptbtokenizer.PTBTokenizer().tokenize(captions)
    res = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(predictions)})
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    rows = {f"bleu_{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    scorers = {"meteor": meteor, "rouge_l": Rouge(), "cider": Cider()}
    return rows | {name: scorer.compute_score(gts, res) for name, scorer in scorers.items()}


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """The two jars of pycocoevalcap in read-only folders below a path with a space."""
    folder = tmp_path_factory.mktemp("site packages")
    for package in (meteor_package, ptbtokenizer):
        own = Path(package.__file__).parent
        (folder / own.name).mkdir()
        for file in own.iterdir():
            (folder / own.name / file.name).symlink_to(file)
        (folder / own.name).chmod(0o555)
    return folder


@pytest.fixture(scope="module")
def scored(site_packages):
    """The captions above, scored by pycocoevalcap, and by medcap in a read-only path and a Turkish locale."""
    folder = Path(ptbtokenizer.__file__).parent
    if not os.access(folder, os.W_OK):
        pytest.skip(f"the tokenizer of pycocoevalcap writes to {folder}, which is read-only")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}")
        meteor = Meteor()  # starts in parallel with that of medcap
        with patch.context() as locale:
            locale.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Dfile.encoding=ISO-8859-1")
            for package in (meteor_package, ptbtokenizer):
                path = site_packages / Path(package.__file__).parent.name / Path(package.__file__).name
                locale.setattr(package, "__file__", str(path))
            scores = score_captions(PREDICTIONS, REFERENCES)
        expected = reference_scores(PREDICTIONS, REFERENCES, meteor)
    return SimpleNamespace(expected=expected, scores=scores)


@pytest.mark.parametrize("name", METRICS)
def test_scores_equal_pycocoevalcap(scored, name):
    corpus, per_image = scored.expected[name]
    assert scored.scores.metrics[name] == pytest.approx(corpus, rel=0, abs=1e-12)
    assert scored.scores.per_image[name] == pytest.approx(list(per_image), rel=0, abs=1e-12)


def test_scoring_writes_nothing_into_site_packages(scored, site_packages):
    for package in (meteor_package, ptbtokenizer):
        own = Path(package.__file__).parent
        assert {path.name for path in (site_packages / own.name).iterdir()} <= {path.name for path in own.iterdir()}


def test_empty_prediction_scores_zero(scored):
    empty = PREDICTIONS.index("")
    # BLEU is about 1e-12, because pycocoevalcap adds small numbers to numerator and denominator
    per_image = scored.scores.per_image
    assert [per_image[name][empty] for name in METRICS] == pytest.approx([0] * len(METRICS), abs=1e-6)
    assert all(score > 0 for score in per_image["meteor"][4:])


def test_signature_of_scores(scored):
    assert scored.scores.signature == signature(REFERENCES, tokenized=False)
    assert "|refs:1-2|" in str(scored.scores.signature)


def test_signature_is_one_line_of_pairs():
    line = str(signature([["a"]] * 72, tokenized=False, split="test", beams=None))
    pairs = dict(pair.split(":", 1) for pair in line.split("|"))
    assert pairs["tok"] == "ptb-3.4.1-lower"
    assert (pairs["n"], pairs["refs"], pairs["split"]) == ("72", "1", "test")
    assert "beams" not in pairs
    assert list(pairs)[-2:] == ["tool", "medcap"]
    assert "tok:none" in str(signature([["a"]], tokenized=True))
    assert "meteor" in pairs
    assert "meteor" not in str(score_captions(["a"], [["a"]], tokenized=True, metrics=["cider"]).signature)


def test_signature_value_with_separator_raises():
    with pytest.raises(ValueError, match=r"'split=a\|b'"):
        signature([["a"]], tokenized=True, split="a|b")


def test_line_breaks_do_not_shift_captions():
    breaks = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    captions = [*(f"left{mark}kidney" for mark in breaks), "a\r\nb\n", "\n", "", "last"]
    assert tokenize(captions) == ["left kidney"] * len(breaks) + ["a b", "", "", "last"]


def test_brackets_become_words_and_nothing_is_printed(capfd):
    assert tokenize(["CT (axial): a \ufffd mass.", "\ud800"]) == ["ct -lrb- axial -rrb- a mass", ""]
    score_captions(["a b"], [["a c"]], tokenized=True, metrics=WITHOUT_METEOR)
    assert capfd.readouterr() == ("", "")


def test_tokenize_empty_list():
    assert tokenize([]) == []


CASES = {  # name: metric, predictions, references, corpus score computed by hand
    "all empty": ("cider", [""], [[""]], 0.0),
    "all references blank": ("cider", ["a b"], [[" "]], 0.0),
    "one image has no idf": ("cider", ["a b c d"], [["a b c d"]], 0.0),
    "identical": ("cider", ["a b c d", "e f g h"], [["a b c d"], ["e f g h"]], 10.0),
    "brevity penalty": ("bleu_1", ["a b c"], [["a b c d"]], math.exp(1 - 4 / 3)),
    "counts are pooled": ("bleu_1", ["a b c d", "x y"], [["a b c d"], ["a z"]], 4 / 6),  # the mean would be 1/2
    "bigrams": ("bleu_2", ["a b d c"], [["a b c d"]], math.sqrt(1 / 3)),  # 4 of 4 words, 1 of 3 bigrams
    "empty prediction": ("rouge_l", [""], [["a b"]], 0.0),
    "best reference counts": ("rouge_l", ["a b"], [["x y", "a b"]], 1.0),
    "one word missing": ("rouge_l", ["a b c"], [["a b d c"]], 2.44 * 0.75 / (0.75 + 1.44)),  # P 3/3, R 3/4
}


@pytest.mark.parametrize(("metric", "predictions", "references", "expected"), CASES.values(), ids=CASES)
def test_score_equals_hand_computed_value(metric, predictions, references, expected):
    scores = score_captions(predictions, references, tokenized=True, metrics=[metric])
    assert list(scores.metrics) == [metric]
    assert scores.metrics[metric] == pytest.approx(expected, abs=1e-6)
    assert len(scores.per_image[metric]) == len(predictions)


INVALID = {
    "lengths": (["a", "b"], [["a"]], METRICS, "2 predictions but references of 1 images"),
    "zero images": ([], [], METRICS, "no images to score"),
    "no reference": (["a", "b"], [["a"], []], METRICS, r"references\[1\] is empty"),
    "text of references": (["a"], ["a"], METRICS, r"references\[0\] must be a list of captions, got the text 'a'"),
    "text for references": (["a"], "a", METRICS, "references must be a list of captions, got the text 'a'"),
    "text for predictions": ("a", [["a"]], METRICS, "predictions must be a list of captions, got the text 'a'"),
    "None": (["a", None], [["a"], ["b"]], METRICS, "image 1: a caption must be text, got None"),
    "number": (["a"], [[3.5]], METRICS, r"image 0: a caption must be text, got 3\.5"),
    "unknown metric": (["a"], [["a"]], ["bleu_4", "spice"], r"bleu_1, .*, cider; got \['spice'\]"),
    "text for metrics": (["a"], [["a"]], "cider", r"got \['cider'\]"),
    "no metric": (["a"], [["a"]], [], r"got \[\]"),
}


@pytest.mark.parametrize(("predictions", "references", "metrics", "message"), INVALID.values(), ids=INVALID)
def test_invalid_input_raises(predictions, references, metrics, message):
    with pytest.raises(ValueError, match=message):
        score_captions(predictions, references, tokenized=True, metrics=metrics)


def test_tokenize_str_raises():
    with pytest.raises(ValueError, match="got the text 'a caption'"):
        tokenize("a caption")


def test_evaluate_metric_equals_score_captions(tmp_path):
    metric = CocoCaption(cache_dir=str(tmp_path))
    predictions, references = PREDICTIONS[:3], [captions[0] for captions in REFERENCES[:3]]
    expected = score_captions(predictions, [[text] for text in references], metrics=WITHOUT_METEOR)
    assert isinstance(expected, Scores)
    for listed in (references, [[text] for text in references]):
        assert metric.compute(predictions=predictions, references=listed, metrics=WITHOUT_METEOR) == expected.metrics


def test_evaluate_loads_the_metric_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    metric = evaluate.load(coco_caption.__file__, cache_dir=str(tmp_path))
    settings = {"tokenized": True, "metrics": ["rouge_l"]}
    assert metric.compute(predictions=["a b"], references=[["a b", "c"]], **settings) == {"rouge_l": 1.0}


def test_metric_adds_batches(tmp_path):
    metric = CocoCaption(cache_dir=str(tmp_path))
    expected = score_captions(PREDICTIONS, REFERENCES, metrics=WITHOUT_METEOR).metrics
    for rows in (slice(0, 3), slice(3, 8)):
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows])
    assert metric.compute(metrics=WITHOUT_METEOR) == expected


HALF = """
import subprocess
import sys
from medcap.metrics.coco_caption import CocoCaption
cache, process = sys.argv[1], int(sys.argv[2])
metric = CocoCaption(cache_dir=cache, num_process=2, process_id=process, experiment_id="halves")
texts = ["a mass of the left kidney", "normal chest", "two cysts of the liver", "no fracture"]
metric.add_batch(predictions=texts[process::2], references=[[text + " seen"] for text in texts[process::2]])
print(metric.compute(tokenized=True, metrics=["cider", "bleu_4"]))
"""


def test_metric_gathers_over_two_processes(tmp_path):
    first, second = (
        subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path), str(process)], stdout=subprocess.PIPE, text=True)
        for process in (0, 1)
    )
    texts = ["a mass of the left kidney", "two cysts of the liver", "normal chest", "no fracture"]
    expected = score_captions(texts, [[text + " seen"] for text in texts], tokenized=True, metrics=["cider", "bleu_4"])
    assert ast.literal_eval(first.communicate(timeout=120)[0]) == pytest.approx(expected.metrics, abs=1e-12)
    assert second.communicate(timeout=120)[0].strip() == "None"
