"""METEOR gives identical answers with the paraphrases that the texts can contain as with its complete table.

pytest tests/metrics/test_paraphrases.py
"""

import gzip
import random

import numpy as np
import pytest

from medcap.metrics import meteor
from medcap.metrics.meteor import MeteorProcess, meteor_statistics
from medcap.metrics.paraphrases import ParaphraseIndex, index_folder, write_index, write_paraphrases

# word pairs of one table: a phrase of one word, of several, with punctuation, without letters, and in Greek
PAIRS = [
    ("0.5", "chest x-ray", "chest radiograph"),
    ("0.0848", "chest radiograph", "chest x-ray"),
    ("1.0E-4", "a mass", "the lesion"),
    ("0.25", ",", "."),
    ("0.75", "well-known", "known"),
    ("0.125", "λόγοσ", "word"),
    ("0.3", "3.5 mm", "several millimetres"),
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines("\n".join(pair) + "\n" for pair in PAIRS)
    return path


def kept(texts, table):
    """Return the numbers of the pairs that are written for `texts`."""
    out = table.with_name("kept.gz")
    write_paraphrases(texts, out, table)
    lines = gzip.decompress(out.read_bytes()).decode().split("\n")
    pairs = [(float(number), *phrases) for number, *phrases in zip(*[iter(lines)] * 3, strict=False)]
    return [[(float(number), *phrases) for number, *phrases in PAIRS].index(pair) for pair in pairs]


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        ([], [3]),
        (["Chest X-Ray", "a chest radiograph"], [0, 1, 3]),
        (["chest X-ray of a mass"], [3]),  # the other phrase is missing
        (["x-ray, chest", "radiograph: chest"], [3]),  # in another order
        (["chest", "x-ray", "chest radiograph"], [3]),  # in two texts
        (["a (mass)", "the - lesion"], [2, 3]),  # punctuation between the words, which METEOR may remove
        (["well known"], [3, 4]),
        (["ΛΌΓΟΣ", "word"], [3, 5]),
        (["3 . 5 mm", "several millimetres"], [3, 6]),
    ],
)
def test_pairs_remain_whose_phrases_can_occur(table, texts, pairs):
    assert kept(texts, table) == pairs


def test_an_index_is_written_once(table, monkeypatch):
    first = index_folder(table)
    monkeypatch.setattr("medcap.metrics.paraphrases.write_index", None)  # a call would fail
    assert index_folder(table) == first


def test_phrases_of_an_index_are_those_of_the_table(table, tmp_path):
    (tmp_path / "index").mkdir()
    write_index(table, tmp_path / "index")
    index = ParaphraseIndex(tmp_path / "index")
    phrases = index.texts(np.arange(len(index.arrays["text_ends"])))
    assert sorted(phrases) == sorted({text for _, *both in PAIRS for text in both})


def _phrases(n):
    """Return `n` pairs of phrases of METEOR's table."""
    index = ParaphraseIndex(index_folder())
    pairs = random.Random(0).sample(range(len(index.arrays["second"])), n)
    first = index.arrays["pair_ends"].searchsorted(pairs, side="right")
    return list(zip(index.texts(first), index.texts(index.arrays["second"][pairs]), strict=True))


def test_answers_are_those_of_the_complete_table():
    rng = random.Random(1)
    marks = [*",.;:()-'\"&%/", "&amp;", "...", "\u2013", "\u201d", "'s", "3.5", "n't", "\u00e9", "|", "DOTMULTI"]
    hypotheses, references = [], []
    for one, two in _phrases(400):
        noise = rng.choice(marks)
        hypotheses.append(f"a {one}{noise} of the {noise}{one.upper()} chest")
        references.append([f"the {two} {noise}of a {two}{noise} thorax", one])
    with MeteorProcess() as complete:
        expected = complete.statistics(hypotheses, references)
    assert meteor_statistics(hypotheses, references) == expected
    paraphrased = [float(line.split()[5]) for line in expected]
    assert sum(count > 0 for count in paraphrased) > 200


def test_without_an_index_meteor_reads_its_own_table(monkeypatch, caplog):
    tables = []

    class Process(MeteorProcess):
        def __init__(self, table):
            tables.append(table)
            super().__init__(table)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meteor, "write_paraphrases", full)
    monkeypatch.setattr(meteor, "MeteorProcess", Process)
    monkeypatch.setattr(Process, "__enter__", lambda self: self)
    monkeypatch.setattr(Process, "__exit__", lambda *_: None)
    monkeypatch.setattr(Process, "statistics", lambda *_: ["1"])
    assert meteor_statistics(["a"], [["a"]]) == ["1"]
    assert tables == [None]
    assert "No space left on device" in caplog.text
