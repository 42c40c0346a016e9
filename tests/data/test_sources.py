"""Several data sets as one: the rows of a merged folder, separate patients and ids, and leaks between sources.

pytest tests/data/test_sources.py
"""

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from medcap.cli import main
from medcap.data.layout import DataLayout
from medcap.data.load import describe_sources, load_data, read_data
from medcap.data.selection import Selection, drop_counts, fingerprint
from medcap.data.sources import rows_by_source, source_names
from medcap.evaluation.split import load_split
from medcap.phantom.dataset import write_phantom

LAYOUT = DataLayout(group_column="patient")


def noise_image(seed):
    """Return an image that is no near-duplicate of one with another seed."""
    return Image.effect_noise((32, 32), 80).point(lambda value: (value * (seed + 3)) % 256)


def write(folder, rows, first=0):
    """Write an image folder with rows (id, patient, split), and return its path."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption", "patient", "split"])
        for number, (image_id, patient, split) in enumerate(rows, first):
            noise_image(number).save(folder / f"{image_id}.png")
            table.writerow([f"{image_id}.png", f"caption {number}", patient, split])
    return str(folder)


def rows(prefix, *splits):
    return [(f"{prefix}{number}", f"P{number}", split) for number, split in enumerate(splits)]


ALL = ("train", "train", "train", "validation", "test", "test")


@pytest.fixture
def pair(tmp_path):
    """Two image folders with the same patients and different ids."""
    return [write(tmp_path / "one", rows("a", *ALL)), write(tmp_path / "two", rows("b", *ALL), first=10)]


def test_two_sources_give_the_rows_of_their_merged_folder(pair, tmp_path):
    merged = tmp_path / "merged"
    shutil.copytree(pair[0], merged)
    shutil.copytree(pair[1], merged, dirs_exist_ok=True)
    lines = [(tmp_path / name / "metadata.csv").read_text().splitlines() for name in ("one", "two")]
    (merged / "metadata.csv").write_text("\n".join([*lines[0], *lines[1][1:]]))
    joined, whole = load_data(pair, LAYOUT), load_data(str(merged), LAYOUT)
    for split, expected in whole.items():
        assert fingerprint(joined[split]) == fingerprint(expected)
        assert joined[split]["image_id"][:] == expected["image_id"][:]
        assert drop_counts(joined[split]) == drop_counts(expected)
        for new, old in zip(joined[split]["image"], expected["image"], strict=True):
            assert Path(new["path"]).read_bytes() == Path(old["path"]).read_bytes()


def test_patients_of_two_sources_are_different(pair):
    groups = [set(part["group"]) for part in read_data(pair, LAYOUT).values()]
    assert groups[0] == {f"{source}.P{number}" for source in ("one", "two") for number in range(3)}
    assert not groups[0] & groups[1]


def test_ids_get_the_name_of_their_source_only_if_two_share_one(tmp_path, pair, caplog):
    assert set(read_data(pair, LAYOUT)["test"]["image_id"]) == {"a4", "a5", "b4", "b5"}
    other = write(tmp_path / "three", [("a0", "P9", "test"), ("c1", "P8", "train")], first=20)
    with caplog.at_level(logging.WARNING):
        joined = load_data([pair[0], other], LAYOUT, splits=["test"])["test"]
    assert joined["image_id"][:] == ["one.a4", "one.a5", "three.a0"]
    assert "1 image ids are in several sources, such as a0" in caplog.text


def test_sources_of_one_name_are_numbered(tmp_path):
    paths = [str(tmp_path / name / "data") for name in "xy"]
    assert source_names(paths) == ["data-1", "data-2"]
    assert source_names(["reports.csv", "eltorio/ROCOv2.v1"]) == ["reports", "ROCOv2-v1"]


def test_a_split_holds_the_sources_that_have_it(tmp_path, pair, caplog):
    more = write(tmp_path / "more", rows("m", "train", "validation"), first=20)
    with caplog.at_level(logging.WARNING):
        joined = load_data([pair[0], more], LAYOUT)
    assert {split: len(part) for split, part in joined.items()} == {"train": 4, "valid": 2, "test": 2}
    assert "no test images of more: it has no such split" in caplog.text
    with pytest.raises(ValueError, match="no split 'test' in any of more, again"):
        load_data([more, write(tmp_path / "again", rows("n", "train", "validation"), first=30)], LAYOUT)


def test_missing_images_of_a_small_source_are_an_error(tmp_path, pair):
    for path in (tmp_path / "two").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="3 of 3 images of train of two are missing"):
        load_data(pair, LAYOUT, Selection(max_broken=0.6))


def leak(pair):
    """Write a training image of the first source over a test image of the second, larger."""
    with Image.open(f"{pair[0]}/a0.png") as image:
        image.resize((48, 48), Image.Resampling.BICUBIC).save(f"{pair[1]}/b4.png")


def test_an_image_in_train_of_one_source_and_test_of_another_is_found(pair, tmp_path, caplog, capsys):
    leak(pair)
    data = load_data(pair, LAYOUT, Selection(exclude_leaks=True), num_proc=1)
    assert data["train"]["image_id"][:] == ["a1", "a2", "b0", "b1", "b2"]
    assert drop_counts(data["train"])["leaked_image"] == 1
    report = tmp_path / "report.json"
    audit = ["data", "audit", *pair, "--group_column", "patient", "--out", str(report), "--num_proc", "1"]
    main(audit)
    similar = json.loads(report.read_text())["similar_images"]
    assert similar["across_sources"] == similar["near_duplicates"]["across_splits"] == 1
    assert [(part["source"], part["image_id"]) for part in similar["groups"][0]["images"]] == [
        ("one", "a0"),
        ("two", "b4"),
    ]
    assert "images of one source that are also in another, or nearly: 1 groups" in capsys.readouterr().out
    main([*audit, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(report.read_text())
    shutil.copy(f"{pair[0]}/a0.png", f"{pair[1]}/b4.png")
    with caplog.at_level(logging.WARNING):
        load_data(pair, LAYOUT)
    assert "1 images of test are also in train, such as b4 and a0" in caplog.text


def test_phantoms_of_two_sources_keep_their_known_findings(tmp_path):
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for seed, path in enumerate(paths):
        write_phantom(tmp_path / path, train=2, valid=2, test=3, seed=seed)
    split = load_split(paths, "test")
    assert split.truth.keys() == set(split.ids)
    assert split.sources == ["one"] * 3 + ["two"] * 3
    known = json.loads((tmp_path / "two" / "test_findings.json").read_text())
    assert split.truth[split.ids[-1]] == known[split.ids[-1].removeprefix("two.")]
    assert describe_sources(paths) == f"{paths[0]} (rocov2) and {paths[1]} (rocov2)"
    assert rows_by_source(split.rows) == {"one": [0, 1, 2], "two": [3, 4, 5]}
