"""CSV files have no formulas that a spreadsheet would run, and are read back unchanged."""

import csv

import pytest

from medcap.evaluation.csv_files import read_pairs, write_predictions
from medcap.io import guard, unguard, write_csv

FORMULAS = ["=1+1", "+1", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "''-1"]
TEXTS = ["a = b", "'quoted' text", "'", "", "5 - 3", "''x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formula_is_a_text_in_a_spreadsheet(text):
    assert guard(text) == f"'{text}"
    assert unguard(guard(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_and_numbers_are_unchanged(text, tmp_path):
    assert guard(text) == unguard(text) == text
    write_csv(tmp_path / "t.csv", ["x"], [[-0.5], [-1]])
    assert (tmp_path / "t.csv").read_text() == "x\n-0.5\n-1\n"


def test_predictions_are_read_back_unchanged(tmp_path):
    captions = {f"={n}" if text in FORMULAS else f"b{n}": text for n, text in enumerate(FORMULAS + TEXTS)}
    write_predictions(tmp_path / "p.csv", captions)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        assert not [cell for row in csv.reader(file) for cell in row if cell[:1] in tuple("=+-@\t\r\n\uff1d")]
    ids, predictions, references = read_pairs(tmp_path / "p.csv", tmp_path / "p.csv")
    assert dict(zip(ids, predictions, strict=True)) == dict(zip(ids, references, strict=True)) == captions


OTHER_IDS = {
    "disjoint": ("a1,x\na2,y\n", "b1,x\n", r"no id of .*p\.csv is in .*r\.csv: the first has a1, a2, the second b1$"),
    "some": ("a1,x\na2,y\n", "a1,x\na3,y\n", r"p\.csv: 1 of 3 ids are missing: a3$"),
    "more": ("a1,x\na2,y\n", "a1,x\n", r"r\.csv: 1 of 2 ids are missing: a2$"),
    "no rows": ("", "a1,x\n", r"p\.csv: there is no row$"),
}


@pytest.mark.parametrize(("predictions", "references", "message"), OTHER_IDS.values(), ids=OTHER_IDS)
def test_other_ids_are_named(tmp_path, predictions, references, message):
    for name, rows in (("p", predictions), ("r", references)):
        (tmp_path / f"{name}.csv").write_text(f"ID,Caption\n{rows}")
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "p.csv", tmp_path / "r.csv")
