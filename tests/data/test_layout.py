"""Splits are read from names, or created without separating the images of a patient."""

import logging
import re

import pytest
from table_files import all_in_train, ids, simple_rows, touch, write_csv

from medcap.data.layout import DataLayout, _assign, complete_splits
from medcap.data.readers import read_csv, read_imagefolder
from medcap.data.selection import Selection, select_rows

NAMES = [
    ("train", "valid", "test"),
    ("train", "validation", "test"),
    ("Train", "val", "TEST"),
    ("train", "dev", "test"),
]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_splits_are_read_from_folders_files_or_a_column(tmp_path, names):
    def row(name, column=None):
        return {"file_name": name, "caption": name, **({"split": column} if column else {})}

    for number, name in enumerate(names):
        write_csv_in = tmp_path / "each" / name
        write_csv_in.mkdir(parents=True)
        write_csv(write_csv_in / "metadata.csv", [row(f"{number}.png")])
    (tmp_path / "csv").mkdir()
    for number, name in enumerate(names):
        write_csv(tmp_path / "csv" / f"{name}.csv", [row(f"{name}/{number}.png")])
    (tmp_path / "one").mkdir()
    write_csv(tmp_path / "one" / "metadata.csv", [row(f"{name}/{number}.png") for number, name in enumerate(names)])
    write_csv(tmp_path / "column.csv", [row(f"{name}/{n}.png", name) for n, name in enumerate(names)])
    expected = {s: [f"{name}-{n}"] for n, (s, name) in enumerate(zip(("train", "valid", "test"), names, strict=True))}
    assert ids(read_imagefolder(tmp_path / "each", DataLayout())) == expected
    assert ids(read_imagefolder(tmp_path / "one", DataLayout())) == expected
    assert ids(read_csv(tmp_path / "csv", DataLayout())) == expected
    assert ids(read_csv(tmp_path / "column.csv", DataLayout())) == expected


def test_folders_of_a_csv_are_not_splits(tmp_path):
    write_csv(tmp_path / "t.csv", [{"file_name": f"{top}/x.png", "caption": "c"} for top in ("train", "test")])
    assert list(read_csv(tmp_path / "t.csv", all_in_train())) == ["train"]


def test_created_splits_keep_groups_together_and_have_the_requested_sizes(tmp_path):
    write_csv(tmp_path / "t.csv", simple_rows(3_000, patients=600))
    data = read_csv(tmp_path / "t.csv", DataLayout(group_column="patient", valid_fraction=0.2, test_fraction=0.1))
    groups = [set(rows["group"]) for rows in data.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 600
    assert {split: round(len(rows) / 3_000, 1) for split, rows in data.items()} == {
        "train": 0.7, "valid": 0.2, "test": 0.1,
    }  # fmt: skip


def test_rows_keep_their_split_when_others_are_added_or_removed(tmp_path):
    def splits(rows, **keys):
        write_csv(tmp_path / "t.csv", rows)
        found = ids(read_csv(tmp_path / "t.csv", DataLayout(**keys)))
        return {image_id: split for split, image_ids in found.items() for image_id in image_ids}

    rows = simple_rows(400)
    complete, fewer = splits(rows), splits(rows[100:])
    assert fewer.items() <= complete.items()
    assert splits(list(reversed(rows))) == complete
    assert splits(rows, split_seed=1) != complete
    more = splits(rows, valid_fraction=0.3)
    assert {i for i, split in complete.items() if split == "test"} == {
        i for i, split in more.items() if split == "test"
    }


def test_hash_of_splits_is_stable():
    """Published results depend on blake2b, 8 bytes, of split:seed:group."""
    fractions = {"test": 0.1, "valid": 0.1}
    found = {i: _assign(f"patient {i}", fractions, 42) for i in range(30)}
    assert {i: split for i, split in found.items() if split != "train"} == {5: "test", 25: "test", 27: "test"}


def test_fraction_of_train_is_independent_of_created_splits(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(400)))
    write_csv(tmp_path / "t.csv", simple_rows(400))
    raw = read_csv(tmp_path / "t.csv", DataLayout())
    tenth = select_rows(raw, ["train"], Selection(fraction=0.1))["train"]
    assert 0.04 < len(tenth) / len(raw["train"]) < 0.2


TRAIN = {"image_id": [str(i) for i in range(200)], "group": [None] * 200}
OTHER = {"image_id": ["x"], "group": [None]}
GIVEN = {
    "only train": ({"train": TRAIN}, {"train", "valid", "test"}, True),
    "train and test": ({"train": TRAIN, "test": OTHER}, {"train", "valid", "test"}, True),
    "train and valid": ({"train": TRAIN, "valid": OTHER}, {"train", "valid"}, False),
    "only test": ({"test": OTHER}, {"test"}, False),
}


@pytest.mark.parametrize(("given", "splits", "is_split"), GIVEN.values(), ids=GIVEN)
def test_missing_valid_and_test_are_taken_from_train(given, splits, is_split, caplog):
    def select(table, numbers):
        return {name: [values[i] for i in numbers] for name, values in table.items()}

    found = complete_splits(given, select, DataLayout(), "data")
    assert found.keys() == splits
    assert all(found[split] == given[split] for split in given if split != "train")
    assert (len(found.get("train", OTHER)["image_id"]) < 200) == (is_split or "train" not in given)
    assert ("data: 200 rows are split into" in caplog.text) == is_split


def test_warning_recommends_group_column(tmp_path, caplog):
    write_csv(tmp_path / "t.csv", [*simple_rows(100), {"file_name": "x", "caption": "c", "patient": ""}])
    read_csv(tmp_path / "t.csv", DataLayout())
    assert "of one patient may be in several splits; name the column of patients with group_column" in caplog.text
    caplog.clear()
    read_csv(tmp_path / "t.csv", DataLayout(group_column="patient"))
    assert re.search(
        r"101 rows are split into .* train, .*, by patient; 1 rows without a value are split by image", caplog.text
    )
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
