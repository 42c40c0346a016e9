"""Scores of ImageCLEFmedical.

pytest tests/metrics/test_imageclef.py
"""

import string
import sys

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from medcap.metrics import imageclef
from medcap.metrics.imageclef import PROTOCOLS, bert_score, bertscore_need, normalize, rouge_1, score_imageclef

NORMAL = {
    "lower case": ("CT of the Hip", "ct of the hip"),
    "each run of digits": ("3.5 cm, T2 in 2019", "numbernumber cm tnumber in number"),
    "digits before punctuation": ("1-2", "numbernumber"),
    "punctuation": ("left-sided (arrow): 'mass'.", "leftsided arrow mass"),
    "other signs stay": ("5 µm – É", "number µm – é"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("caption", "expected"), NORMAL.values(), ids=NORMAL)
def test_normalize(caption, expected):
    assert normalize(caption) == expected


ROUGE = {
    "equal": ("a mass", "a mass", 1.0),
    "half of the words, twice as long": ("a b c d", "a b", 2 * (0.5 * 1) / 1.5),
    "counts are clipped": ("a a a", "a b c", 1 / 3),
    "order does not count": ("b a", "a b", 1.0),
    "no stemming": ("masses", "mass", 0.0),
    "both empty": ("", "", 1.0),
    "empty prediction": ("", "a", 0.0),
    "blank reference": ("a", " ", 0.0),
    "empty after normalization, not in the file": ("", "...", 0.0),
    "blank, not empty": (" ", " ", 0.0),
    "normalized": ("Mass, 3 cm.", "mass 7 CM", 1.0),
}


@pytest.mark.parametrize(("prediction", "reference", "expected"), ROUGE.values(), ids=ROUGE)
def test_rouge_1(prediction, reference, expected):
    assert rouge_1([prediction], [reference]) == pytest.approx([expected])


@pytest.fixture
def no_model(monkeypatch):
    """BERTScore's model is not on this machine."""
    monkeypatch.setattr(imageclef, "bertscore_need", lambda model: f"the model {model}")


@pytest.mark.usefixtures("no_model")
def test_scores_are_means_over_images_of_normalized_texts():
    scored = score_imageclef(["Mass, 3 cm.", "x", ""], ["mass 7 CM", "y", ""])
    assert scored["per_image"] == {"rouge_1": [1.0, 0.0, 1.0]}
    assert scored["metrics"] == {"rouge_1": pytest.approx(2 / 3)}
    expected = "metrics:imageclef-2026|norm:lower,number,nopunct|empty:raw|n:3|rouge_1:f1,nostem,mean|"
    assert scored["signature"].startswith(expected)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("protocol", "bleurt"), [("imageclef-2025", set()), ("imageclef-2026", {"bleurt"})])
def test_parts_that_are_not_computed_are_named_and_no_aggregate_is_given(protocol, bleurt):
    scored = score_imageclef(["a"], ["a"], protocol=protocol)
    parts = {"bertscore", "similarity", "medcat_f1", "alignscore"} | bleurt
    assert scored["metrics"].keys() == {"rouge_1"}
    assert scored["not_computed"].keys() == parts | {"relevance", "factuality"}
    assert scored["not_computed"]["bertscore"] == f"the model {imageclef.BERT_MODEL}"
    assert all(part in scored["not_computed"]["relevance"] for part in PROTOCOLS[protocol]["relevance"])


@pytest.mark.usefixtures("no_model")
def test_aggregate_with_all_of_its_parts_is_their_mean(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "imageclef-2026", {"relevance": ("rouge_1",), "factuality": ("alignscore",)})
    scored = score_imageclef(["a", "b"], ["a", "c"])
    assert scored["metrics"] == {"rouge_1": 0.5, "relevance": 0.5}
    assert scored["not_computed"].keys() == {"alignscore", "factuality"}


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], ["a", "b"])], ids=["none", "lengths"])
def test_mismatched_lengths_raise(predictions, references):
    with pytest.raises(ValueError, match="predictions and"):
        score_imageclef(predictions, references)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """An untrained BERT whose tokenizer has no maximum length."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mass", "left", "right", "kidney", *string.ascii_lowercase]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=int(1e30)).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=len(words), **shape, initializer_range=0.5)).save_pretrained(folder)
    return str(folder)


def test_bertscore_is_one_for_equal_texts_and_independent_of_order(tiny_bert):
    pytest.importorskip("bert_score")
    predictions, references = ["left kidney", "mass", "a b c"], ["left kidney", "right kidney mass", "c"]
    scores = bert_score(predictions, references, tiny_bert, num_layers=2)
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert all(score < 0.99 for score in scores[1:])
    reverse = bert_score(predictions[::-1], references[::-1], tiny_bert, num_layers=2)
    assert reverse == pytest.approx(scores[::-1], abs=1e-5)


def test_bertscore_of_empty_captions(tiny_bert):
    pytest.importorskip("bert_score")
    predictions, references = ["", "", "mass", "mass", "left"], ["", "kidney", " ", "mass", "left"]
    assert bert_score(predictions, references, tiny_bert, num_layers=2) == pytest.approx([1, 0, 0, 1, 1], abs=1e-5)
    assert bert_score([""], [""], "no/model") == [1.0]


def test_bertscore_is_part_of_the_scores_if_its_model_is_on_this_machine(tiny_bert):
    pytest.importorskip("bert_score")
    predictions, references = ["Left kidney.", "mass"], ["left kidney", "right kidney, mass"]
    scored = score_imageclef(predictions, references, model=tiny_bert, num_layers=2)
    assert scored["per_image"]["bertscore"] == bert_score(predictions, references, tiny_bert, num_layers=2)
    assert scored["per_image"]["bertscore"][0] == pytest.approx(1, abs=1e-5)
    assert "bertscore" not in scored["not_computed"]
    assert f"|bertscore:{tiny_bert},idf:references|" in scored["signature"]


def test_blank_references_count_for_the_idf(tiny_bert):
    pytest.importorskip("bert_score")
    predictions, references = ["left mass", "", ""], ["mass right", "...", ""]
    scores = bert_score(predictions, references, tiny_bert, num_layers=2)
    alone = bert_score(predictions[:1], references[:1], tiny_bert, num_layers=2)
    assert scores[1:] == [0.0, 1.0]
    assert scores[0] != pytest.approx(alone[0], abs=1e-4)


def test_need_of_bertscore(monkeypatch, tiny_bert, tmp_path):
    pytest.importorskip("bert_score")
    monkeypatch.setattr(imageclef, "try_to_load_from_cache", lambda model, name: None)
    assert bertscore_need(tiny_bert) is None
    assert bertscore_need() == "the model microsoft/deberta-xlarge-mnli: --bertscore downloads it"
    monkeypatch.setattr(imageclef, "try_to_load_from_cache", lambda model, name: str(tmp_path / name))
    assert bertscore_need() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bertscore_need(tiny_bert).startswith("the package bert-score: pip install")


def test_missing_bert_score_package_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match=r"BERTScore needs bert-score: pip install .*\[bertscore\]"):
        bert_score(["a"], ["a"])
