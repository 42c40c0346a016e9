"""Missing values are missing, and a patient that is spelled in several ways is one patient."""

import json

import pytest
from table_files import all_in_train, touch, write_csv, write_table

from medcap.data.groups import check_moved, texts, unify_groups
from medcap.data.layout import DataLayout
from medcap.data.readers import read_csv, read_imagefolder

SAME = {
    "space": ["P1", "P1 ", " P1", "P1\u00a0"],
    "whole number": ["1", "1.0", "01"],
    "Unicode form": ["Andre\u0301", "Andr\u00e9"],
    "case": ["P1", "p1"],
    "wide digits": ["12", "\uff11\uff12"],
}
DIFFERENT = ["P1", "P2", "1.5", "1.50", "15", "P10", "1.2.0", "-1"]


@pytest.mark.parametrize("names", SAME.values(), ids=SAME)
def test_spellings_of_one_patient_are_unified_with_a_warning(names, caplog):
    for order in (names, names[::-1]):
        unified = unify_groups([*order, None, "P9"], "t.csv")
        assert unified == [*[min(unified[:-2])] * len(names), None, "P9"]
    assert "t.csv: patients or articles with several spellings, each read as one: 1, such as" in caplog.text


def test_different_patients_stay_different(caplog):
    assert unify_groups(DIFFERENT, "t.csv") == DIFFERENT
    assert unify_groups(["1.0", "2.0"], "t.csv") == ["1", "2"]  # of a column of floats
    assert not caplog.text


def test_missing_values_are_none():
    values = [None, float("nan"), float("inf"), "", " ", "NaN", "None", "<NA>", "null", "x", 7, 1.5]
    assert texts(values, "caption", "t") == [None] * 9 + ["x", "7", "1.5"]
    with pytest.raises(ValueError, match="^t: caption must be one text; row 2 has bytes$"):
        texts(["x", b"y"], "caption", "t")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_nan_is_no_caption_and_no_patient(tmp_path, name):
    touch(tmp_path, "a", "b", "c")
    rows = [
        {"file_name": "a", "caption": "x", "patient": 1.0},
        {"file_name": "b", "caption": None, "patient": float("nan")},
        {"file_name": "c", "caption": "z", "patient": float("nan")},
    ]
    write_table(tmp_path / name, rows)
    data = read_imagefolder(tmp_path, all_in_train(group_column="patient"))["train"]
    assert (data["caption"][:], data["group"][:]) == (["x", None, "z"], ["1", None, None])


def test_patient_with_a_blank_is_in_one_split(tmp_path):
    rows = [{"file_name": f"{i}.png", "caption": "c", "patient": f"P{i // 2}" + " " * (i % 2)} for i in range(200)]
    write_csv(tmp_path / "t.csv", rows)
    data = read_csv(tmp_path / "t.csv", DataLayout(group_column="patient"))
    groups = [set(part["group"]) for part in data.values()]
    assert len(groups) == 3
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100


def test_patient_of_two_files_is_spelled_in_one_way(tmp_path, caplog):
    for split, patient in (("train", "1"), ("test", "1.0")):
        write_csv(tmp_path / f"{split}.csv", [{"file_name": f"{split}.png", "caption": "c", "patient": patient}])
    data = read_csv(tmp_path, all_in_train(group_column="patient"))
    assert {split: rows["group"][:] for split, rows in data.items()} == {"train": ["1"], "test": ["1"]}
    assert "such as '1' and '1.0'" in caplog.text


def test_names_of_columns_are_found_in_any_case(tmp_path):
    touch(tmp_path, "a", "b")
    rows = [
        {"File_Name": name, "CAPTION": "c", "Patient_ID": "P", "License": "CC BY-NC", "SPLIT": split, "Image_ID": name}
        for name, split in (("a", "train"), ("b", "test"))
    ]
    write_table(tmp_path / "metadata.csv", rows)
    data = read_imagefolder(tmp_path, all_in_train(group_column="patient_id"))
    assert {split: part["image_id"][:] for split, part in data.items()} == {"train": ["a"], "test": ["b"]}
    assert (data["test"]["group"][:], data["test"]["license"][:]) == (["P"], ["CC BY-NC"])


def test_column_split_must_agree_with_the_file(tmp_path):
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", [{"file_name": f"{split}.png", "caption": "c", "Split": "test"}])
    with pytest.raises(ValueError, match=r"train\.csv: its rows are those of split train, .* column split has test;"):
        read_csv(tmp_path, all_in_train())


def test_end_of_a_caption_is_not_read_as_patient(tmp_path):
    (tmp_path / "t.csv").write_text("file_name,caption,patient\na.png,CT,P1\nb.png,left, upper lobe\n")
    with pytest.raises(ValueError, match=r"t\.csv: patient begins with a space: ' upper lobe' \(row 2\); if it is"):
        read_csv(tmp_path / "t.csv", DataLayout(group_column="patient"))
    check_moved([" P1", None, " P2"], "patient", "t.csv")  # a space after every comma
    check_moved(["P1", " P1"], "patient", "t.csv")


def test_lone_surrogate_names_file_and_line(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a", "caption": "CT \ud83d"}) + "\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl: .ud83d is half a character, .* \(line 1\)$"):
        read_imagefolder(tmp_path, DataLayout())
