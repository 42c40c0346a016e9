"""Check and zip of a submission to ImageCLEFmedical.

pytest tests/evaluation/test_submission.py
"""

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest

from medcap.evaluation.csv_files import write_predictions
from medcap.evaluation.submission import check_submission, write_submission

IDS = ["i1", "i2", "i3"]
QUOTES = ["1 captions with a comma are not in double quotes, the first: "]
SUBMISSIONS = {
    "valid": ('ID,Caption\ni1,a\ni2,"b, with a comma"\ni3,c\n', []),
    "line of the organizers' README": (
        'ID,Caption\ni1,"Illustration of the original image with an ROI.T: Tumor."\ni2,b\ni3,c\n', [],
    ),
    "CRLF": ("ID,Caption\r\ni1,a\r\ni2,b\r\ni3,c\r\n", []),
    "no line break at the end": ("ID,Caption\ni1,a\ni2,b\ni3,c", []),
    "blanks around captions": ("ID,Caption\ni1, a\ni2,b \ni3,c\n", []),
    "no header": ("i1,a\n", ["the header is i1,a, but must be ID,Caption"]),
    "header in lower case": ("id,caption\ni1,a\n", ["the header is id,caption, but must be ID,Caption"]),
    "BOM": ("\ufeffID,Caption\ni1,a\n", ["the header is (BOM)ID,Caption, but must be ID,Caption"]),
    "nothing": ("", ["the header is missing, but must be ID,Caption"]),
    "missing": ("ID,Caption\ni2,b\n", ["2 ids are missing, the first: i1"]),
    "unknown": ("ID,Caption\ni1,a\ni2,b\ni3,c\nx,d\n", ["1 ids are not in the split, the first: x"]),
    "twice": ("ID,Caption\ni1,a\ni2,b\ni3,c\ni2,d\n", ["1 ids occur more than once, the first: i2"]),
    "other order": (
        "ID,Caption\ni1,a\ni3,c\ni2,b\n",
        ["2 ids are not in the order of the split, the first: i3, where i2 must be"],
    ),
    "blank caption": ("ID,Caption\ni1,a\ni2, \ni3,c\n", ["1 captions are blank, the first: i2"]),
    "blank line": ("ID,Caption\ni1,a\n\ni2,b\ni3,c\n", ["1 lines are blank, the first: line 3"]),
    "blank line at the end": ("ID,Caption\ni1,a\ni2,b\ni3,c\n \n", ["1 lines are blank, the first: line 5"]),
    "comma": ("ID,Caption\ni1,a\ni2,b, not quoted\n", ["1 lines do not have two cells, the first: i2,b, not quoted"]),
    "blank after a quoted comma": (
        'ID,Caption\ni1,a\ni2,"b\u2028, c, d"\ni3,c\n', [QUOTES[0] + ", c, d\""],
    ),
    "quote": ('ID,Caption\ni1,"a\n', ["not a valid CSV: unexpected end of data"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "problems"), SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_check_submission(text, problems):
    assert check_submission(text.encode(), IDS) == problems


def test_blanks_around_an_id_are_a_problem():
    problems = check_submission(b"ID,Caption\ni1,a\n i2,b\ni3,c\n", IDS)
    assert problems[0] == "1 ids begin or end with a blank, the first:  i2"


def test_submission_in_latin_1_is_a_problem():
    assert check_submission("ID,Caption\ni1,é\n".encode("latin-1"), IDS)[0].startswith("not in UTF-8")


CAPTIONS = {"i1": "a mass, left", "i2": '"ring" sign', "i3": "-5 HU\nin the é"}


def read_zip(path: Path) -> tuple[list[str], bytes]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist(), archive.read("submission.csv")


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "eval"
    folder.mkdir()
    write_predictions(folder / "predictions.csv", CAPTIONS)
    return folder


def test_zip_holds_the_valid_submission_alone(evaluation, tmp_path):
    assert write_submission(evaluation, tmp_path / "out.zip") == 3
    names, content = read_zip(tmp_path / "out.zip")
    assert names == ["submission.csv"]
    assert check_submission(content, IDS) == []
    rows = list(csv.reader(io.StringIO(content.decode())))
    assert rows == [["ID", "Caption"], ["i1", "a mass, left"], ["i2", '"ring" sign'], ["i3", "-5 HU in the é"]]
    assert content.startswith(b'ID,Caption\ni1,"a mass, left"\n')


def test_zip_has_the_same_bytes_again(evaluation, tmp_path):
    for name in ("one.zip", "two.zip"):
        write_submission(evaluation, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:  # not the time of writing
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_ids_file_gives_the_order(evaluation, tmp_path):
    (tmp_path / "ids.csv").write_text("ID,Caption\r\ni3,\r\ni1,\r\ni2,\r\n")
    write_submission(evaluation, tmp_path / "out.zip", tmp_path / "ids.csv")
    assert check_submission(read_zip(tmp_path / "out.zip")[1], ["i3", "i1", "i2"]) == []


def test_captions_of_files_are_read(tmp_path):
    lines = [{"image": f"images/{name}.jpg", "caption": "a mass"} for name in ("i1", "i2")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_submission(tmp_path / "c.jsonl", tmp_path / "out.zip") == 2
    assert read_zip(tmp_path / "out.zip")[1] == b'ID,Caption\ni1,"a mass"\ni2,"a mass"\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no captions"),
        ([{"image": "i1.jpg", "error": "truncated"}], "no valid submission: 1 captions are blank, the first: i1"),
        ([{"image": "a/i1.jpg", "caption": "b"}] * 2, "1 images have the name of another one, the first: i1"),
    ],
    ids=["none", "error", "twice"],
)
def test_invalid_captions_leave_no_zip(tmp_path, lines, message):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "c.jsonl", tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("i1\ni2\n", "1 ids are not in the split, the first: i3"),
        ("i1\ni2\ni3\ni4\n", "1 ids are missing, the first: i4"),
    ],
)
def test_other_images_than_those_of_the_ids_file_raise(evaluation, tmp_path, ids, message):
    (tmp_path / "ids.csv").write_text(f"ID\n{ids}")
    with pytest.raises(ValueError, match=message):
        write_submission(evaluation, tmp_path / "out.zip", tmp_path / "ids.csv")
    assert not (tmp_path / "out.zip").exists()
