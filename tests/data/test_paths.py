"""Only files in the data set's folder are read, unless the user allows others."""

import os
import unicodedata
from argparse import Namespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from table_files import all_in_train, paths, touch, write_csv, write_table

from medcap.commands.options import LAYOUT_OPTIONS, layout_from_args
from medcap.data.layout import DataLayout
from medcap.data.load import read_data
from medcap.data.readers import read_csv, read_hub, read_imagefolder


@pytest.fixture
def outside(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    touch(tmp_path, "secret.png", "data/a.png")
    return tmp_path / "secret.png"


def struct(names):
    return [{"bytes": None, "path": str(name)} for name in names]


COLUMNS = {"string": lambda names: [str(name) for name in names], "struct": struct}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_parquet_column_names_files_in_its_folder_only(tmp_path, outside, column):
    rows = [{"image": image, "caption": f"c{i}"} for i, image in enumerate(column(["a.png", outside]))]
    write_table(tmp_path / "data" / "train.parquet", rows)
    data = str(tmp_path / "data")
    line = r"data, split train: image must contain names of files inside .*data, but has '.*secret.png' \(row 2\)"
    with pytest.raises(ValueError, match=line):
        read_hub(data, DataLayout())
    allowed = read_hub(data, all_in_train(allow_outside=True))["train"]
    assert paths(allowed) == [str(tmp_path / "data" / "a.png"), str(outside)]


@pytest.mark.parametrize("name", ["/etc/x.png", "../secret.png", "a/../../secret.png", "zip://a.png::/etc/x.zip"])
def test_tables_name_files_in_their_folder_only(tmp_path, outside, name):
    write_csv(tmp_path / "data" / "metadata.csv", [{"file_name": name, "caption": "c"}])
    for read, path in ((read_imagefolder, tmp_path / "data"), (read_csv, tmp_path / "data" / "metadata.csv")):
        with pytest.raises(ValueError, match=r"must contain names of files inside .*data, but has .*; allow_out"):
            read(path, DataLayout())
        assert len(read(path, all_in_train(allow_outside=True))["train"]) == 1


@pytest.mark.parametrize("link", ["link.png", "folder/secret.png"])
def test_links_that_leave_the_folder_are_refused(tmp_path, outside, link):
    (tmp_path / "data" / "link.png").symlink_to(outside)
    (tmp_path / "data" / "inside.png").symlink_to(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path, target_is_directory=True)
    write_csv(tmp_path / "data" / "metadata.csv", [{"file_name": n, "caption": "c"} for n in ("inside.png", link)])
    with pytest.raises(ValueError, match=rf"but has '{link}' \(row 2\); allow_outside"):
        read_imagefolder(tmp_path / "data", DataLayout())
    rows = read_imagefolder(tmp_path / "data", all_in_train(allow_outside=True))["train"]
    assert paths(rows) == [str(tmp_path / "data" / name) for name in ("inside.png", link)]


def test_links_in_rocov2_are_refused(tmp_path, outside):
    (tmp_path / "data" / "train_captions.csv").write_text("ID,Caption\nlink,c\n")
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "train" / "link.png").symlink_to(outside)
    with pytest.raises(ValueError, match=r"links in .*data lead to files outside of it: .*link\.png; allow_outside"):
        read_data(tmp_path / "data", splits=["train"])
    assert len(read_data(tmp_path / "data", DataLayout(allow_outside=True), ["train"])["train"]) == 1


def test_folder_that_is_a_link_is_read(tmp_path, outside):
    write_csv(tmp_path / "data" / "metadata.csv", [{"file_name": "a.png", "caption": "c"}])
    os.symlink(tmp_path / "data", tmp_path / "named")
    assert paths(read_imagefolder(tmp_path / "named", all_in_train())["train"]) == [str(tmp_path / "named" / "a.png")]


NO_IMAGES = {
    "numbers": ({"image": [3]}, "split train: the column image has no images but Value.*int64.*; set image_column"),
    "lists": ({"image": [["a.png"]]}, "split train: the column image has no images but List"),
    "URL": ({"image": ["https://x.org/a.png"]}, r"but has 'https://x\.org/a\.png' \(row 1\)$"),
    "no rows": ({"image": pyarrow.array([], pyarrow.string())}, r"train\.parquet: there is no row$"),
    "Latin-1": (
        {"image": ["a.png"], "caption": pyarrow.array([b"\xe9"]).view(pyarrow.string())},
        r"split train: caption of row 1 is not in UTF-8 \(.*\)$",
    ),
}


@pytest.mark.parametrize(("columns", "message"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_parquet_without_images_or_texts_is_refused(tmp_path, outside, columns, message):
    columns.setdefault("caption", pyarrow.array(["c"] * len(columns["image"]), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match=message):
        read_hub(str(tmp_path / "data"), DataLayout())


DIFFERENT = {"column": [{"image": "a.png", "text": "c"}], "type": [{"image": {"path": "a.png"}, "caption": "c"}]}


@pytest.mark.parametrize("rows", DIFFERENT.values(), ids=DIFFERENT)
def test_parquet_files_with_different_columns_are_refused(tmp_path, rows):
    write_table(tmp_path / "train-0.parquet", [{"image": "a.png", "caption": "c"}])
    write_table(tmp_path / "train-1.parquet", rows)
    with pytest.raises(ValueError, match=f"^{tmp_path}: its files have different columns, or a column of different"):
        read_hub(str(tmp_path), all_in_train())


@pytest.mark.parametrize(("written", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_names_match_in_both_unicode_forms(tmp_path, written, on_disk):
    name = unicodedata.normalize(on_disk, "Mu\u0308ller/ro\u0308ntgen.png")
    touch(tmp_path, name)
    row = {"file_name": unicodedata.normalize(written, name), "caption": "c"}
    write_csv(tmp_path / "metadata.csv", [row])
    assert paths(read_imagefolder(tmp_path, all_in_train())["train"]) == [str(tmp_path / name)]
    touch(tmp_path, "train/" + name.rpartition("/")[2])
    (tmp_path / "train_captions.csv").write_text(f"ID,Caption\n{row['file_name'].rpartition('/')[2][:-4]},c\n")
    assert paths(read_data(tmp_path, splits=["train"])["train"])[0].endswith(name.rpartition("/")[2])


@pytest.mark.parametrize("names", [["train"], ["train", "test"]])
def test_hub_column_split_is_used_or_refused(tmp_path, outside, names):
    rows = [{"image": "a.png", "caption": f"c{i}", "Split": split} for i, split in enumerate(["train", "test"])]
    for name in names:
        write_table(tmp_path / "data" / f"{name}.parquet", rows)
    if len(names) > 1:
        with pytest.raises(ValueError, match="data, split train: its rows are those of split train, .* has test"):
            read_hub(str(tmp_path / "data"), all_in_train())
        return
    data = read_hub(str(tmp_path / "data"), all_in_train())
    assert {split: part["caption"][:] for split, part in data.items()} == {"train": ["c0"], "test": ["c1"]}


def test_only_the_user_allows_files_outside():
    names = ("data_format", *LAYOUT_OPTIONS, "allow_outside")
    given = Namespace(**dict.fromkeys(names))
    assert not layout_from_args(given, {"allow_outside": True, "split_seed": 3}).allow_outside  # an adapter's recipe
    assert layout_from_args(given, {"split_seed": 3}).split_seed == 3
    given.allow_outside = True
    assert layout_from_args(given, {}).allow_outside
