"""Image files in several splits are reported on loading, and few files are read for it."""

import os
import shutil
import zipfile

import pytest
from table_files import all_in_train, write_csv, write_table

from medcap.data import same_images
from medcap.data.images import image_digest
from medcap.data.load import read_data

WARNING = "2 images of test are also in train, such as test-0 and train-1; exclude_leaks: true drops them from train"


def contents():
    """{split: bytes of images}: the first two of test are those of train; all have one size."""
    images = [bytes([n]) * 5000 for n in range(4)] + [b"\x09" * 100 + b"\x00" * 4900]
    return {"train": [images[3], images[0], images[1]], "test": [images[0], images[1], images[4]]}


def csv_files(folder):
    for split, images in contents().items():
        rows = [{"file_name": f"{split}-{n}.png", "caption": f"c{n}"} for n in range(len(images))]
        for row, image in zip(rows, images, strict=True):
            (folder / row["file_name"]).write_bytes(image)
        write_csv(folder / f"{split}.csv", rows)


def parquet(folder):
    for split, images in contents().items():
        rows = [
            {"image": {"bytes": image, "path": None}, "caption": "c", "image_id": f"{split}-{n}"}
            for n, image in enumerate(images)
        ]
        write_table(folder / f"{split}.parquet", rows)


def rocov2(folder):
    csv_files(folder)
    for split, images in contents().items():
        with zipfile.ZipFile(folder / f"{split}_images.zip", "w") as archive:
            for n in range(len(images)):
                archive.write(folder / f"{split}-{n}.png", f"{split}/{split}-{n}.png")
        lines = "".join(f"{split}-{n},c\n" for n in range(len(images)))
        (folder / f"{split}_captions.csv").write_text(f"ID,Caption\n{lines}")


@pytest.mark.parametrize("write", [csv_files, parquet, rocov2])
def test_same_file_in_two_splits_is_reported(tmp_path, write, caplog, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    read_data(tmp_path / "data", all_in_train(), ["test"] if write is csv_files else ["train", "test"], False)
    assert caplog.text.count("are also in") == 1
    assert f"data: {WARNING}" in caplog.text


def test_files_of_other_sizes_are_not_read(tmp_path, caplog, monkeypatch):
    csv_files(tmp_path)
    for n, path in enumerate(sorted(tmp_path.glob("*.png"))):
        path.write_bytes(path.read_bytes() + b"x" * n)
    shutil.copy(tmp_path / "train-0.png", tmp_path / "test-2.png")
    (tmp_path / "test-1.png").write_bytes(b"\0" * len((tmp_path / "train-1.png").read_bytes()))
    read = []
    monkeypatch.setattr(same_images, "image_digest", lambda image: read.append(image["path"]) or image_digest(image))
    read_data(tmp_path, all_in_train())
    assert "1 images of test are also in train, such as test-2 and train-0" in caplog.text
    assert sorted(path.rpartition("/")[2] for path in read) == ["test-2.png", "train-0.png"]


def test_unreadable_files_are_left_to_the_selection(tmp_path, caplog, monkeypatch):
    csv_files(tmp_path)
    monkeypatch.setattr(same_images, "open", lambda path, mode: os.open(tmp_path / "gone", os.O_RDONLY), raising=False)
    read_data(tmp_path, all_in_train())
    assert "are also in" not in caplog.text
