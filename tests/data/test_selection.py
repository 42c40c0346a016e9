"""Every row that is left out is left out for one reason, and counted under it."""

import datasets
import numpy as np
import pytest
from PIL import Image

from medcap.data.selection import FEATURES, REASONS, Selection, drop_counts, select_rows


def picture(seed):
    """Smooth random grey: pictures of different seeds do not resemble each other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12), np.uint8)
    return Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def raw_split(folder, split, rows):
    """Rows of (seed of the picture, group, license); an id is the split and the row's number."""
    paths = []
    for i, (seed, _, _) in enumerate(rows):
        path = folder / f"{split}-{i}.png"
        picture(seed).resize((96 + 10 * i, 80 + 8 * i)).save(path)
        paths.append(str(path))
    columns = {
        "image_id": [f"{split}-{i}" for i in range(len(rows))],
        "image": paths,
        "caption": [f"a picture {i}" for i in range(len(rows))],
        "cuis": [[]] * len(rows),
        "manual_cuis": [[]] * len(rows),
        "group": [group for _, group, _ in rows],
        "license": [name for _, _, name in rows],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES, split=datasets.NamedSplit(split))


@pytest.fixture
def raw(folder):
    return {
        "train": raw_split(
            folder,
            "train",
            [
                (1, "A", "CC BY"),
                (2, "B", "CC BY-NC"),
                (3, "C", None),
                (4, "D", "CC0"),
                (4, "D", "CC BY"),
                (5, None, None),
            ],
        ),
        "valid": raw_split(
            folder, "valid", [(1, "V", "CC BY"), (6, "B", "CC BY-NC"), (7, "T", None), (9, None, None)]
        ),
        "test": raw_split(folder, "test", [(7, "T", "CC BY-ND"), (8, "C", "CC BY"), (8, "C", "CC BY")]),
    }


def kept(data):
    return {split: [int(image_id.split("-")[1]) for image_id in rows["image_id"]] for split, rows in data.items()}


def reasons(rows):
    return {reason: n for reason, n in drop_counts(rows).items() if reason in REASONS and n}


def test_leaks_go_out_of_the_lower_split_and_test_stays_whole(raw):
    data = select_rows(raw, ["train", "valid", "test"], Selection(exclude_leaks=True))
    assert kept(data) == {"train": [3, 4, 5], "valid": [0, 1, 3], "test": [0, 1, 2]}
    assert reasons(data["train"]) == {"leaked_image": 1, "leaked_group": 2}
    assert reasons(data["valid"]) == {"leaked_image": 1}


def test_leaks_into_splits_that_were_not_asked_for_are_found(raw):
    assert kept(select_rows(raw, ["train"], Selection(exclude_leaks=True))) == {"train": [3, 4, 5]}


def test_of_repeated_pictures_the_first_stays(raw):
    data = select_rows(raw, ["train", "valid", "test"], Selection(dedupe=True))
    assert kept(data) == {"train": [0, 1, 2, 3, 5], "valid": [0, 1, 2, 3], "test": [0, 1]}
    assert reasons(data["test"]) == {"duplicate": 1}


def test_only_licences_that_allow_commercial_use_stay(raw):
    data = select_rows(raw, ["train", "test"], Selection(license_filter="commercial"))
    assert (kept(data)["train"], kept(data)["test"]) == ([0, 3, 4], [1, 2])
    assert reasons(data["train"]) == {"license": 3}


def test_without_any_licence_there_is_nothing_to_filter_by(raw):
    unknown = raw["train"].remove_columns("license").add_column("license", [None] * 6, feature=FEATURES["license"])
    with pytest.raises(
        ValueError, match="license_filter is commercial, but no licence is known of any image of train"
    ):
        select_rows({"train": unknown}, ["train"], Selection(license_filter="commercial"))


def test_everything_at_once_adds_up_and_is_written_down(raw):
    wanted = Selection(license_filter="commercial", dedupe=True, exclude_leaks=True, seed=5)
    data = select_rows(raw, ["train", "valid", "test"], wanted)
    for rows in data.values():
        counts = drop_counts(rows)
        assert counts["read"] == counts["kept"] + sum(counts[reason] for reason in REASONS)
        assert counts["kept"] == len(rows)
        assert (counts["license_filter"], counts["dedupe"], counts["exclude_leaks"]) == ("commercial", True, True)
    assert kept(data) == {"train": [3], "valid": [0], "test": [1]}


def test_pictures_are_decoded_only_where_they_must_be(raw, monkeypatch):
    monkeypatch.setattr("medcap.data.selection.take_prints", None)
    select_rows(raw, ["train"], Selection(license_filter="commercial", fraction=1.0))


def test_a_picture_that_cannot_be_decoded_is_counted_as_that(raw, folder):
    (folder / "train-5.png").write_bytes(b"no picture")
    data = select_rows(raw, ["train"], Selection(dedupe=True, max_broken=0.5))
    assert reasons(data["train"]) == {"undecodable": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fraction": 0}, "fraction must be above 0 and at most 1, got 0"),
        ({"max_broken": 2}, "max_broken is a share, 0 to 1, got 2"),
        ({"license_filter": "free"}, "license_filter is any or commercial, got 'free'"),
    ],
)
def test_a_choice_out_of_range_raises(keys, message):
    with pytest.raises(ValueError, match=message):
        Selection(**keys)
