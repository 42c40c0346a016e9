"""Scores and submission check of ImageCLEFmedical.

pytest tests/metrics/test_imageclef.py
"""

import string
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from medcap.metrics.imageclef import bert_score, check_submission, normalize, rouge_1, score_imageclef

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
}


@pytest.mark.parametrize(("prediction", "reference", "expected"), ROUGE.values(), ids=ROUGE)
def test_rouge_1(prediction, reference, expected):
    assert rouge_1([prediction], [reference]) == pytest.approx([expected])


def test_scores_are_means_over_images_of_normalized_texts():
    scored = score_imageclef(["Mass, 3 cm.", "x", ""], ["mass 7 CM", "y", "..."])
    assert scored["per_image"] == {"rouge_1": [1.0, 0.0, 1.0]}
    assert scored["metrics"] == {"rouge_1": pytest.approx(2 / 3)}
    assert scored["signature"].startswith("metrics:imageclef|norm:lower,number,nopunct|n:3|rouge_1:f1,nostem,mean|")


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


def test_missing_bert_score_package_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match=r"BERTScore needs bert-score: pip install .*\[bertscore\]"):
        bert_score(["a"], ["a"])


IDS = ["i1", "i2", "i3"]
SUBMISSIONS = {
    "valid": ('ID,Caption\ni3,c\ni1,a\ni2,"b, with a comma"\n', []),
    "CRLF": ("ID,Caption\r\ni1,a\r\ni2,b\r\ni3,c\r\n", []),
    "no header": ("i1,a\n", ["the header is i1,a, but must be ID,Caption"]),
    "nothing": ("", ["the header is missing, but must be ID,Caption"]),
    "missing": ("ID,Caption\ni2,b\n", ["2 ids are missing, the first: i1"]),
    "unknown": ("ID,Caption\ni1,a\ni2,b\ni3,c\nx,d\n", ["1 ids are not in the split, the first: x"]),
    "twice": ("ID,Caption\ni1,a\ni2,b\ni3,c\ni2,d\n", ["1 ids occur more than once, the first: i2"]),
    "blank": ("ID,Caption\ni1,a\ni2, \ni3,c\n", ["1 captions are blank, the first: i2"]),
    "comma": ("ID,Caption\ni1,a\ni2,b, not quoted\n", ["1 lines do not have two cells, the first: i2,b, not quoted"]),
    "quote": ('ID,Caption\ni1,"a\n', ["not a valid CSV: unexpected end of data"]),
}


@pytest.mark.parametrize(("text", "problems"), SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_check_submission(text, problems, tmp_path: Path):
    (tmp_path / "predictions.csv").write_bytes(text.encode())
    assert check_submission(tmp_path / "predictions.csv", IDS) == problems


def test_submission_in_latin_1_is_a_problem(tmp_path: Path):
    (tmp_path / "predictions.csv").write_bytes("ID,Caption\ni1,é\n".encode("latin-1"))
    assert check_submission(tmp_path / "predictions.csv", IDS)[0].startswith("not in UTF-8")
