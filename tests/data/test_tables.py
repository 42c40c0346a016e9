"""Tables are read strictly; errors name file, line and cause."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from medcap.data.load import load_data
from medcap.data.tables import check_ids, list_some, read_column, read_jsonl, read_parquet, read_table

BAD_CSV = {
    "other columns": ("image,text\r\na,b\r\n", r"needs the columns ID, Caption, has image, text"),
    "empty file": ("", r"needs the columns ID, Caption, has none"),
    "repeated id": ("ID,Caption\r\na,x\r\nb,y\r\na,z\r\n", r"repeated ids: a$"),
    "id with a slash": ("ID,Caption\r\n../a,x\r\n", r"ids must not .* a slash or '::': \.\./a$"),
    "id with separator of URLs": ("ID,Caption\r\na::b,x\r\n", r"ids must not .* a slash or '::': a::b$"),
    "blank id": ("ID,Caption\r\n,x\r\n", r"ids must not be blank .*: \(blank\)$"),
    "comma not quoted": (
        "ID,Caption\r\na,left, upper\r\n",
        r"invalid CSV: 3 cells in a row, 2 in the header; quote texts that contain a comma \(line 2\)",
    ),
    "comma not quoted in one of several rows": (
        "ID,Caption,patient\na,CT,P1\nb,left, upper\nc,MRI\n",
        r"invalid CSV: 2 cells in a row, 3 in the header; quote .* \(line 4\)",
    ),
    "quote not closed": ('ID,Caption\r\na,"x\r\nb,y\r\n', r"invalid CSV: a quote is not closed \(lines 2 to 3\)"),
    "quote closed in a later row": (
        'ID,Caption\na1,"Mass\na2,MRI\na3,Stent of 5"\na4,US\n',
        r"invalid CSV: a quote was opened before the row 'a2,MRI', .*; close the quote \(lines 2 to 4\)",
    ),
    "quote closed in the next row": (
        'Caption,patient,ID\n"Mass,P1,x1.png\nStent of 5"",P2,x2.png"\n',
        r"invalid CSV: 1 cell in a row",
    ),
    "quote in the first column": (
        'Caption,ID\n"Mass,000.png\nMRI,001.png\nUS",002.png\n',
        r"invalid CSV: a quote was opened before the row 'Mass,000.png'",
    ),
    "repeated column": ("ID,Caption,Caption\r\na,x,y\r\n", r"repeated columns: Caption$"),
    "id of spaces": ("ID,Caption\r\n  ,x\r\n", r"ids must not be blank"),
    "text after a quote": ('ID,Caption\r\na,"x"y\r\n', r"invalid CSV: .* \(line 2\)"),
    "Latin-1": (
        "ID,Caption\r\na,\xe9\r\n".encode("latin-1"),
        r"not in UTF-8 \(.* at byte 14, line 2\); save it as UTF-8",
    ),
    "a cell of 1 MB": (
        "ID,Caption\r\na," + "x" * 2**20,
        r"invalid CSV: field larger than field limit \(131072\) \(line 2\)",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv_raises_with_file_and_cause(tmp_path, content, message):
    path = tmp_path / "train_captions.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"train_captions.csv: {message}"):
        read_column(path, "Caption")
    with pytest.raises(ValueError, match=f"train_captions.csv: {message}"):
        load_data(tmp_path, splits=["train"])


def test_cells_are_not_changed(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'ID,Caption\r\na," x\r\ny "\r\nb,\r\n')
    assert read_column(tmp_path / "p.csv", "Caption") == {"a": " x\r\ny ", "b": ""}


def test_blank_lines_are_skipped(tmp_path):
    (tmp_path / "p.csv").write_text("\ufeff\r\n ID , x,\r\n \r\na,,\r\nb,1,\r\n", encoding="utf-8")
    assert read_table(tmp_path / "p.csv", ["ID"]) == {"ID": ["a", "b"], "x": ["", "1"], "": ["", ""]}


@pytest.mark.parametrize(
    "caption", ["FINDINGS:\n1, normal\nCT, axial", "CT.\nNo mass, no effusion.", "a\n12,000 images"]
)
def test_captions_may_have_several_lines(tmp_path, caption):
    (tmp_path / "p.csv").write_text(f'ID,Caption\n000.png,"{caption}"\n1004,"{caption}"\n')
    assert read_column(tmp_path / "p.csv", "Caption") == {"000.png": caption, "1004": caption}


def test_columns_are_found_in_any_case(tmp_path):
    (tmp_path / "p.csv").write_text("id,CAPTION,Other\na,x,y\n")
    assert read_table(tmp_path / "p.csv", ["ID", "Caption"]) == {"ID": ["a"], "Caption": ["x"], "Other": ["y"]}


def test_position_of_invalid_byte_is_that_in_the_file(tmp_path):
    start = b"ID,Caption\n" + b"a,x\n" * 10_000
    (tmp_path / "p.csv").write_bytes(start + b"b,\xe9\n")
    with pytest.raises(ValueError, match=rf"at byte {len(start) + 2}, line 10002\); save it as UTF-8"):
        read_table(tmp_path / "p.csv", [])


def test_missing_table_raises(tmp_path):
    for read in (lambda path: read_table(path, []), read_jsonl, read_parquet):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_json_lines_become_columns(tmp_path):
    lines = ["\ufeff" + json.dumps({"a": "x", "b": [1]}), "", json.dumps({"c": "\u2028", "a": "y"})]
    (tmp_path / "p.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert read_jsonl(tmp_path / "p.jsonl") == {"a": ["x", "y"], "b": [[1], None], "c": [None, "\u2028"]}


BAD_JSONL = {
    "invalid JSON": ("{a}", "not JSON, one object a line: Expecting property name .*"),
    "an array": ("[1]", r"not an object \{.*\} but list"),
    "too many digits": ('{"a": ' + "1" * 5000 + "}", "not JSON, one object a line: Exceeds the limit .*"),
    "too deep": ("[" * 100_000, "not JSON, one object a line: maximum recursion depth .*"),
    "too long": (json.dumps({"a": "x" * 2**18}), "262144 characters in one text; at most 131072"),
}


@pytest.mark.parametrize(("line", "message"), BAD_JSONL.values(), ids=BAD_JSONL)
def test_bad_json_lines_raise_with_file_line_and_cause(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text('{"a": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"p.jsonl: {message} \(line 2\)$"):
        read_jsonl(tmp_path / "p.jsonl")


@pytest.mark.parametrize("start", [0, 10, 2000, -60])
def test_damaged_parquet_file_raises_one_line(tmp_path, start):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [f"x{i}" for i in range(20_000)]}), path)
    assert len(read_parquet(path)["a"]) == 20_000
    data = bytearray(path.read_bytes())
    data[start : start + 40 or None] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^.*p.parquet: invalid parquet file: .*$"):
        read_parquet(path)


@pytest.mark.parametrize("ids", [[""], ["a", " \t"], ["a/b"], ["a\\b"], ["a::b"], ["a", "b", "a"], [None]])
def test_invalid_ids_raise(ids):
    with pytest.raises(ValueError, match="^table: (ids must not be|repeated ids)"):
        check_ids(ids, "table")


def test_ids_with_dots_and_spaces_are_valid():
    check_ids(["a", "a.v2", "a scan (3)", "a:b", ".."], "table")


def test_list_some_has_five_names():
    assert list_some(list("abcde")) == "a, b, c, d, e"
    assert list_some(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert list_some(["a\r\nb"]) == r"a\r\nb"


def test_parquet_texts_in_another_encoding_are_named(tmp_path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", "y"], "caption": ["c", "axial \u00e9"]}), path)
    for found, wrong, message in (
        ("axial \u00e9".encode(), b"axial \xe9x", r"caption of row 2 is not in UTF-8 \("),
        (b"caption", b"capti\xe9n", r"the name of column 2 is not in UTF-8 \("),
    ):
        path.write_bytes(path.read_bytes().replace(found, wrong))
        with pytest.raises(ValueError, match=rf"p\.parquet: {message}"):
            read_parquet(path)
