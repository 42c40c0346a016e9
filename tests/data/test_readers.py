"""Image folders, CSV files and Hub data sets are read; errors name file and row."""

import datasets
import pytest
from table_files import all_in_train, paths, simple_rows, touch, write_csv, write_table

from medcap.data import images, raster
from medcap.data.layout import DataLayout
from medcap.data.readers import read_csv, read_hub, read_imagefolder
from medcap.data.selection import FEATURES, Selection, select_rows

ROWS = [
    {"file_name": "a/IM 1.dcm", "caption": " CT,\naxial ", "license": "cc-by-4.0", "cuis": "C1;C2", "patient": "p1"},
    {"file_name": "b.tar.png", "caption": 'said "left"', "license": "in-house", "cuis": "", "patient": "p2"},
    {"file_name": "1.2.840.10", "caption": "MRI", "license": "", "cuis": "C3", "patient": ""},
]
IDS = ["a-IM 1", "b.tar", "1.2.840.10"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "own.csv"])
def test_every_table_format_has_the_same_rows(tmp_path, name):
    write_table(tmp_path / name, ROWS)
    touch(tmp_path, *(row["file_name"] for row in ROWS))
    layout = all_in_train(group_column="patient")
    data = read_csv(tmp_path / name, layout) if name == "own.csv" else read_imagefolder(tmp_path, layout)
    rows = data["train"]
    assert (list(data), rows.features, str(rows.split)) == (["train"], FEATURES, "train")
    assert rows["image_id"][:] == IDS
    assert rows["caption"][:] == [row["caption"] for row in ROWS]
    assert paths(rows) == [str(tmp_path / row["file_name"]) for row in ROWS]
    assert rows["cuis"][:] == [["C1", "C2"], [], ["C3"]]
    assert rows["license"][:] == ["CC BY", "in-house", None]
    assert rows["group"][:] == ["p1", "p2", None]


def test_id_column_is_used_and_may_contain_numbers(tmp_path):
    touch(tmp_path, "x.png", "y.png")
    rows = [
        {"file_name": "x.png", "caption": "c", "image_id": 7},
        {"file_name": "y.png", "caption": 8, "image_id": "b"},
    ]
    write_table(tmp_path / "metadata.jsonl", rows)
    found = read_imagefolder(tmp_path, all_in_train())["train"]
    assert found["image_id"][:] == ["7", "b"]
    assert found["caption"][:] == ["c", "8"]


def test_columns_can_be_named(tmp_path):
    touch(tmp_path, "x.png")
    write_csv(tmp_path / "t.csv", [{"scan": "x.png", "text": "a"}])
    rows = read_csv(tmp_path / "t.csv", all_in_train(image_column="scan", caption_column="text"))["train"]
    assert (rows["image_id"][:], rows["caption"][:]) == (["x"], ["a"])


def test_absolute_and_relative_paths_in_csv_have_the_same_ids(tmp_path):
    touch(tmp_path, "scans/a.png", "data/b.png")
    names = [str(tmp_path / "scans" / "a.png"), "../scans/a.png", "b.png"]
    found = []
    for name in names:
        write_csv(tmp_path / "data" / "t.csv", [{"file_name": name, "caption": "c"}])
        rows = read_csv(tmp_path / "data" / "t.csv", all_in_train(allow_outside=True))["train"]
        found.append((rows["image_id"][0], paths(rows)[0]))
    first = ("scans-a", str(tmp_path / "scans" / "a.png"))
    assert found == [first, first, ("b", str(tmp_path / "data" / "b.png"))]


def test_missing_image_is_none_and_counted(tmp_path):
    touch(tmp_path, "0.png")
    write_csv(tmp_path / "metadata.csv", simple_rows(3))
    raw = read_imagefolder(tmp_path, all_in_train())
    assert paths(raw["train"]) == [str(tmp_path / "0.png"), None, None]
    with pytest.raises(ValueError, match="2 of 3 images of train are missing: 1, 2. At most"):
        select_rows(raw, ["train"], Selection())


def test_backslashes_separate_folders(tmp_path):
    touch(tmp_path, "a/b.png")
    write_csv(tmp_path / "metadata.csv", [{"file_name": r"a\b.png", "caption": "c"}])
    rows = read_imagefolder(tmp_path, all_in_train())["train"]
    assert (rows["image_id"][:], paths(rows)) == (["a-b"], [str(tmp_path / "a" / "b.png")])


def test_reading_a_table_opens_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "decode_rgb", lambda *_: pytest.fail("opened an image"))
    monkeypatch.setattr(images, "_read_bytes", lambda path: pytest.fail("read an image"))
    write_csv(tmp_path / "metadata.csv", simple_rows(20_000, patients=5_000))
    data = read_imagefolder(tmp_path, DataLayout(group_column="patient"))
    assert sum(len(rows) for rows in data.values()) == 20_000
    assert 1_600 < len(data["valid"]) < 2_400
    assert 1_600 < len(data["test"]) < 2_400


HOSTILE = {
    "other columns": (
        "metadata.csv",
        b"file_name,text\na.png,x\n",
        "no column 'caption', it has file_name, text; set caption_column, or name the columns in the first line",
    ),
    "no file name column": (
        "metadata.csv",
        b"image,caption\na.png,x\n",
        "no column 'file_name', it has image, caption; set image_column",
    ),
    "empty": ("metadata.csv", b"", "no column 'file_name', it has none"),
    "empty lines": ("metadata.jsonl", b"\n\n", "no column 'file_name', it has none"),
    "Latin-1 in a CSV": ("metadata.csv", "file_name,caption\na.png,\xe9\n".encode("latin-1"), "not in UTF-8"),
    "UTF-16": ("metadata.csv", "file_name,caption\n".encode("utf-16"), "not in UTF-8"),
    "Latin-1 in JSON": (
        "metadata.jsonl",
        '{"file_name": "a", "caption": "\xe9"}'.encode("latin-1"),
        "not in UTF-8 .*line 1",
    ),
    "invalid JSON": (
        "metadata.jsonl",
        b'{"file_name": "a", "caption": "x"}\n{"file_name": \n',
        r"not JSON, .*\(line 2\)",
    ),
    "one list": ("metadata.jsonl", b'[{"file_name": "a"}]', r"not an object .* but list \(line 1\)"),
    "a text of 1 MB": (
        "metadata.jsonl",
        b'{"file_name": "a", "caption": "' + b"x" * 2**20 + b'"}',
        r"1048576 characters in one text; at most 131072 .*line 1",
    ),
    "a cell of 1 MB": ("metadata.csv", b"file_name,caption\na," + b"x" * 2**20, "field larger than field limit"),
    "several captions": (
        "metadata.jsonl",
        b'{"file_name": "a", "caption": ["x", "y"]}',
        "caption must be one text; row 1 has a list",
    ),
    "damaged parquet": ("metadata.parquet", b"PAR1 and no more", "invalid parquet file: .*"),
    "parent folder": (
        "metadata.csv",
        b"file_name,caption\na/../../b.png,x\n",
        r"names of files inside .*, but has 'a/../../b.png' \(row 1\)",
    ),
    "parent folder on Windows": (
        "metadata.csv",
        b"file_name,caption\n..\\b.png,x\n",
        r"but has '\.\./b\.png' \(row 1\)",
    ),
    "absolute path": (
        "metadata.csv",
        b"file_name,caption\nok.png,x\n/etc/passwd,x\n",
        r"but has '/etc/passwd' \(row 2\)",
    ),
    "null character": (
        "metadata.jsonl",
        b'{"file_name": "a\\u0000.png", "caption": "x"}',
        r"but has 'a\\x00.png' \(row 1\)",
    ),
    "blank name": ("metadata.jsonl", b'{"file_name": "a", "caption": "x"}\n{"caption": "x"}', r"but has '' \(row 2\)"),
    "same id": (
        "metadata.csv",
        b"file_name,caption\nb/a.png,x\nb-a.jpg,x\n",
        "give the same image_id: b-a; rename them, or add",
    ),
    "unknown split": (
        "metadata.csv",
        b"file_name,caption,split\na,x,train\nb,x,fold1\n",
        r"must be named train; valid, .*; found fold1",
    ),
    "row without split": (
        "metadata.csv",
        b"file_name,caption,split\na,x,train\nb,x,\n",
        r"; found \(blank\)",
    ),
    "header only": ("metadata.csv", b"\xef\xbb\xbffile_name,caption\n", "there is no row"),
    "no header": ("metadata.csv", b"a.png,CT\nb.png,MRI\n", "it has a.png, CT; .* name the columns in the first line"),
    "blank lines": ("metadata.csv", b"\n \n\n", "no column 'file_name', it has none"),
    "semicolons": ("metadata.csv", b"file_name;caption\na.png;x\n", "separated by semicolons; save it with commas"),
    "tabs": ("metadata.csv", b"file_name\tcaption\na.png\tx\n", "separated by tabs; save it with commas"),
    "null byte in a CSV": ("metadata.csv", b"file_name,caption\na.png,x\0y\n", r"a null character \(line 2\)"),
    "half a character": (
        "metadata.jsonl",
        b'{"file_name": "a", "caption": "x"}\n{"file_name": "b", "caption": "CT \\ud83d"}\n',
        r"\\ud83d is half a character, .* \(line 2\)",
    ),
    "half a character in a CSV": (
        "metadata.csv",
        b"file_name,caption\na.png,\xed\xa0\xbd\n",
        r"not in UTF-8 \(invalid .* at byte 24, line 2\)",
    ),
    "NaN as file name": ("metadata.jsonl", b'{"file_name": NaN, "caption": "x"}', r"but has '' \(row 1\)"),
    "URL": (
        "metadata.csv",
        b"file_name,caption\nhttps://x.org/a.png,x\n",
        r"but has 'https://x.org/a.png' \(row 1\)$",
    ),
    "true as caption": (
        "metadata.jsonl",
        b'{"file_name": "a", "caption": true}',
        "caption must be one text; row 1 has true",
    ),
    "two captions": (
        "metadata.csv",
        b"file_name,caption,Caption\na.png,x,y\n",
        "columns caption and Caption differ only in case",
    ),
    "two splits": (
        "metadata.csv",
        b"file_name,caption,Split,SPLIT\na.png,x,train,test\n",
        "columns Split and SPLIT differ",
    ),
    "row outside the split folders": (
        "metadata.csv",
        b"file_name,caption\ntrain/a,x\nb/c,x\n",
        "; found b; name the split",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_invalid_table_raises_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}") as caught:
        read_imagefolder(tmp_path, DataLayout())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_bom_and_windows_line_ends_are_read(tmp_path, name):
    path = write_table(tmp_path / name, simple_rows(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_imagefolder(tmp_path, all_in_train())["train"]["caption"][:] == ["c0", "c1"]


def test_missing_caption_is_dropped_and_counted(tmp_path, caplog):
    touch(tmp_path, "a", "b")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a", "caption": "x"}\n{"file_name": "b"}\n')
    data = select_rows(read_imagefolder(tmp_path, all_in_train()), ["train"], Selection())
    assert data["train"]["image_id"][:] == ["a"]
    assert "1 of 2 captions of train are blank: b" in caplog.text


def test_missing_group_column_raises(tmp_path):
    write_csv(tmp_path / "t.csv", simple_rows(2))
    with pytest.raises(ValueError, match="no column 'pat', it has file_name, caption, patient; set group_co"):
        read_csv(tmp_path / "t.csv", DataLayout(group_column="pat"))


def test_two_tables_of_one_split_raise(tmp_path):
    for name in ("metadata.csv", "metadata.jsonl"):
        write_table(tmp_path / name, simple_rows(2))
    with pytest.raises(ValueError, match=r"two tables of one split, .*metadata\.csv and .*metadata\.jsonl:"):
        read_imagefolder(tmp_path, DataLayout())
    for name in ("val", "dev"):
        write_table(tmp_path / "splits" / name / "metadata.csv", simple_rows(2))
    with pytest.raises(ValueError, match="two tables of one split"):
        read_imagefolder(tmp_path / "splits", DataLayout())


def test_folder_without_tables_raises(tmp_path):
    with pytest.raises(ValueError, match=r"no metadata\.csv, .* in .* or in a folder train/, validation/ or test/"):
        read_imagefolder(tmp_path, DataLayout())
    with pytest.raises(ValueError, match=r"no CSV at .*: name a file, or a folder with train\.csv"):
        read_csv(tmp_path, DataLayout())


INVALID_LAYOUTS = {
    "unknown": ({"data_format": "coco"}, "data_format is 'coco'; allowed are auto, rocov2, imagefolder, csv, hub"),
    "negative": ({"valid_fraction": -0.1}, "valid_fraction is -0.1; allowed is 0 to below 1"),
    "one": ({"test_fraction": 1}, "test_fraction is 1; allowed"),
    "not a number": ({"test_fraction": float("nan")}, "test_fraction is nan; allowed"),
    "sum of one": ({"valid_fraction": 0.5, "test_fraction": 0.5}, "are 0.5 and 0.5; their sum must be below 1"),
}


@pytest.mark.parametrize(("keys", "message"), INVALID_LAYOUTS.values(), ids=INVALID_LAYOUTS)
def test_invalid_layout_raises(keys, message):
    with pytest.raises(ValueError, match=message):
        DataLayout(**keys)


def write_parquet(folder, n, splits=("train",), **columns):
    folder.mkdir()
    for split in splits:
        table = {"scan": [{"bytes": b"no image", "path": None}] * n, "text": [f"c{i}" for i in range(n)], **columns}
        rows = datasets.Dataset.from_dict(table).cast_column("scan", datasets.Image(decode=False))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
def test_hub_data_set_is_read_and_split_by_group(tmp_path):
    name = write_parquet(tmp_path / "hub", 200, patient=[i % 50 for i in range(200)])
    data = read_hub(name, DataLayout(image_column="scan", caption_column="text", group_column="patient"))
    assert data.keys() == {"train", "valid", "test"}
    assert [str(rows.split) for rows in data.values()] == list(data)
    assert all(rows.features == FEATURES for rows in data.values())
    groups = [set(rows["group"]) for rows in data.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    rows = sorted((row["image_id"], row["caption"]) for part in data.values() for row in part.remove_columns("image"))
    assert rows == sorted((f"train-{i:06d}", f"c{i}") for i in range(200))
    assert select_rows(data, ["valid"], Selection())["valid"].num_rows == len(data["valid"])


@pytest.mark.usefixtures("hub_cache")
def test_hub_data_set_without_image_column_raises(tmp_path):
    name = write_parquet(tmp_path / "hub", 2, splits=["test"])
    line = "hub, split test: no column 'image', it has scan, text; set image_column"
    with pytest.raises(ValueError, match=line):
        read_hub(name, DataLayout())
