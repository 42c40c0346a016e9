"""Selected rows, and the counts of dropped rows by reason."""

import csv
import io
import shutil
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from medcap.data.image_info import ImageInfo
from medcap.data.load import load_data
from medcap.data.selection import FEATURES, REASONS, Selection, check_images, drop_counts, sample_rows, select_rows
from medcap.phantom.dataset import write_phantom


def random_image(seed):
    """Smooth gray noise: images of different seeds are not similar."""
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12), np.uint8)
    return Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def raw_split(folder, split, rows):
    """Rows of (seed of the image, group, license); ids are split and row number."""
    paths = []
    for i, (seed, _, _) in enumerate(rows):
        path = folder / f"{split}-{i}.png"
        random_image(seed).resize((96 + 10 * i, 80 + 8 * i)).save(path)
        paths.append(str(path))
    columns = {
        "image_id": [f"{split}-{i}" for i in range(len(rows))],
        "image": paths,
        "caption": [f"caption {i}" for i in range(len(rows))],
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
                (4, "E", "CC BY"),
                (5, None, None),
            ],
        ),
        "valid": raw_split(
            folder, "valid", [(1, "V", "CC BY"), (6, "B", "CC BY-NC"), (7, "T", None), (9, None, None)]
        ),
        "test": raw_split(folder, "test", [(7, "U", "CC BY-ND"), (8, "C", "CC BY"), (8, "X", "CC BY")]),
    }


def kept(data):
    return {split: [int(image_id.split("-")[1]) for image_id in rows["image_id"]] for split, rows in data.items()}


def reasons(rows):
    return {reason: n for reason, n in drop_counts(rows).items() if reason in REASONS and n}


def test_leaks_are_dropped_from_the_lower_split(raw):
    data = select_rows(raw, ["train", "valid", "test"], Selection(exclude_leaks=True))
    assert kept(data) == {"train": [3, 4, 5], "valid": [0, 1, 3], "test": [0, 1, 2]}
    assert reasons(data["train"]) == {"leaked_image": 1, "leaked_group": 2}
    assert reasons(data["valid"]) == {"leaked_image": 1}


def test_leaks_into_other_splits_are_dropped(raw):
    assert kept(select_rows(raw, ["train"], Selection(exclude_leaks=True))) == {"train": [3, 4, 5]}


def test_first_of_duplicates_is_kept(raw):
    data = select_rows(raw, ["train", "valid", "test"], Selection(dedupe=True))
    assert kept(data) == {"train": [0, 1, 2, 3, 5], "valid": [0, 1, 2, 3], "test": [0, 1]}
    assert reasons(data["test"]) == {"duplicate": 1}


def test_license_filter_keeps_commercial_licenses(raw):
    data = select_rows(raw, ["train", "test"], Selection(license_filter="commercial"))
    assert (kept(data)["train"], kept(data)["test"]) == ([0, 3, 4], [1, 2])
    assert reasons(data["train"]) == {"license": 3}


def test_license_filter_without_licenses_raises(raw):
    unknown = raw["train"].remove_columns("license").add_column("license", [None] * 6, feature=FEATURES["license"])
    with pytest.raises(ValueError, match="license_filter is commercial, but no license of an image of train is known"):
        select_rows({"train": unknown}, ["train"], Selection(license_filter="commercial"))


def test_counts_of_all_options_add_up(raw):
    selection = Selection(license_filter="commercial", dedupe=True, exclude_leaks=True, seed=5)
    data = select_rows(raw, ["train", "valid", "test"], selection)
    for rows in data.values():
        counts = drop_counts(rows)
        assert counts["read"] == counts["kept"] + sum(counts[reason] for reason in REASONS)
        assert counts["kept"] == len(rows)
        assert (counts["license_filter"], counts["dedupe"], counts["exclude_leaks"]) == ("commercial", True, True)
    assert kept(data) == {"train": [3], "valid": [0], "test": [1]}


def test_images_are_decoded_for_duplicates_only(raw, monkeypatch):
    monkeypatch.setattr("medcap.data.selection.inspect_images", None)
    select_rows(raw, ["train"], Selection(license_filter="commercial", fraction=1.0))


def test_undecodable_image_is_counted(raw, folder):
    (folder / "train-5.png").write_bytes(b"not an image")
    data = select_rows(raw, ["train"], Selection(dedupe=True, max_broken=0.5))
    assert reasons(data["train"]) == {"undecodable": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fraction": 0}, "fraction must be above 0 and at most 1, got 0"),
        ({"max_broken": 2}, "max_broken must be 0 to 1, got 2"),
        ({"license_filter": "free"}, "license_filter must be any or commercial, got 'free'"),
    ],
)
def test_invalid_selection_raises(keys, message):
    with pytest.raises(ValueError, match=message):
        Selection(**keys)


def test_selected_or_shuffled_rows_are_read_correctly(raw):
    train = raw["train"].map(lambda row: {**row, "image": None if row["image_id"] == "train-5" else row["image"]})
    train = train.map(lambda row: {**row, "license": None if row["image_id"] == "train-1" else row["license"]})
    selection = Selection(license_filter="commercial", max_broken=0.5)
    data = select_rows({"train": train.select([5, 4, 2, 0])}, ["train"], selection)
    assert kept(data) == {"train": [4, 0]}
    with pytest.raises(ValueError, match="no license of an image of train is known"):
        select_rows({"train": train.select([5, 2])}, ["train"], selection)


def test_image_that_is_similar_only_to_a_leak_is_kept(raw, monkeypatch):
    """The second train row is similar to the first, which leaks, and not to the test row."""
    hashes = {"train-0": range(10), "train-1": range(20), "test-0": (), "test-1": range(60, 120)}
    train, test = raw["train"].select([0, 1]).remove_columns("group"), raw["test"].select([0, 1])
    train = train.add_column("group", [None, None], feature=FEATURES["group"])

    def infos_of(rows, num_proc, perceptual_hash):
        bits = np.array([np.isin(np.arange(256), list(hashes[image_id])) for image_id in rows["image_id"]])
        ids = rows["image_id"][:]
        return [ImageInfo(pixel_digest=i, phash=np.packbits(row).tobytes()) for i, row in zip(ids, bits, strict=True)]

    monkeypatch.setattr("medcap.data.selection.inspect_images", infos_of)
    data = select_rows({"train": train, "test": test}, ["train"], Selection(dedupe=True, exclude_leaks=True))
    assert (kept(data), reasons(data["train"])) == ({"train": [1]}, {"leaked_image": 1})


def test_split_without_rows_raises_with_reasons(raw, folder):
    with pytest.raises(ValueError, match="no rows left: all 1 rows of valid were dropped: 1 license"):
        select_rows({"valid": raw["valid"].select([1])}, ["valid"], Selection(license_filter="commercial"))
    (folder / "broken.png").write_bytes(b"")
    other = datasets.Dataset.from_dict({"image_id": ["a"], "image": [str(folder / "broken.png")]})
    with pytest.raises(ValueError, match="no rows left: all 1 rows of the data set were dropped: 1 undecodable"):
        check_images(other.cast_column("image", datasets.Image()), max_broken=1)


def test_missing_images_count_as_undecodable(raw):
    train = raw["train"].map(lambda row: {**row, "image": None if row["image_id"] == "train-5" else row["image"]})
    assert kept({"train": check_images(train, max_broken=0.5)}) == {"train": [0, 1, 2, 3, 4]}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "data"
    write_phantom(folder, train=150, valid=40, test=40)
    return folder


def zipped(folder, split, number):
    with zipfile.ZipFile(folder / f"{split}_images.zip") as archive:
        return Image.open(io.BytesIO(archive.read(sorted(archive.namelist())[number]))).convert("RGB")


def plant(folder, split, image_id, image, size=None, quality=60):
    """Add a row with `image`, re-encoded at another size and quality."""
    resized = image.resize(size or (image.width * 2 // 3, image.height * 2 // 3))
    resized.save(data := io.BytesIO(), "JPEG", quality=quality)
    with zipfile.ZipFile(folder / f"{split}_images.zip", "a") as archive:
        archive.writestr(f"{split}/{image_id}.jpg", data.getvalue())
    with (folder / f"{split}_captions.csv").open("a", newline="") as file:
        csv.writer(file).writerow([image_id, "planted"])


def set_articles(folder, articles):
    path = folder / "license_information.csv"
    with path.open(newline="") as file:
        rows = [[row[0], articles.get(row[0], row[1]), *row[2:]] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def planted(clean, folder):
    """Images of train in test and valid, an image of valid in test, and two articles across splits."""
    shutil.copytree(clean, folder / "data")
    plant(folder / "data", "test", "from_train", zipped(clean, "train", 3))
    plant(folder / "data", "valid", "too", zipped(clean, "train", 20), (200, 180), 85)
    plant(folder / "data", "test", "from_valid", zipped(clean, "valid", 7), (90, 90), 75)
    set_articles(
        folder / "data",
        {"PHANTOM_train_000011": "PMC1", "PHANTOM_train_000012": "PMC1", "PHANTOM_test_000001": "PMC1",
         "PHANTOM_valid_000002": "PMC2", "PHANTOM_test_000002": "PMC2", "PHANTOM_test_000003": "PMC2"},
    )  # fmt: skip
    return folder / "data"


def dropped_ids(data, split, folder):
    with (folder / f"{split}_captions.csv").open(newline="") as file:
        return {row[0].removeprefix(f"PHANTOM_{split}_") for row in csv.reader(file)} - {
            image_id.removeprefix(f"PHANTOM_{split}_") for image_id in ["ID", *data[split]["image_id"]]
        }


def test_nothing_is_dropped_from_phantoms(clean, folder):
    data = load_data(clean, selection=Selection(dedupe=True, exclude_leaks=True))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 150, "valid": 40, "test": 40}


@pytest.mark.parametrize("splits", [["train", "valid", "test"], ["train"], ["train", "valid"]])
def test_only_planted_leaks_are_excluded(planted, splits):
    data = load_data(planted, selection=Selection(exclude_leaks=True), splits=splits)
    expected = {"train": {"000004", "000021", "000011", "000012"}, "valid": {"000008", "000002"}, "test": set()}
    assert {split: dropped_ids(data, split, planted) for split in splits} == {
        split: expected[split] for split in splits
    }
    assert reasons(data["train"]) == {"leaked_image": 2, "leaked_group": 2}
    if "test" in splits:
        assert reasons(data["valid"]) == {"leaked_image": 1, "leaked_group": 1}
        assert reasons(data["test"]) == {}


def test_leaks_are_kept_by_default(planted):
    assert reasons(load_data(planted, splits=["train"])["train"]) == {}


def test_mirrored_image_is_not_a_duplicate(clean, folder):
    shutil.copytree(clean, folder / "data")
    plant(folder / "data", "test", "mirrored", zipped(clean, "train", 3).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    plant(
        folder / "data", "train", "upside_down", zipped(clean, "train", 5).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    )
    data = load_data(folder / "data", selection=Selection(dedupe=True, exclude_leaks=True))
    assert [reasons(rows) for rows in data.values()] == [{}, {}, {}]


def test_samples_are_chosen_by_a_hash_of_the_id():
    ids = [f"i{n}" for n in range(1000)]
    rows = datasets.Dataset.from_dict({"image_id": ids})
    sample = sample_rows(rows, 100)["image_id"][:]
    assert len(sample) == 100
    assert sample == sorted(sample, key=ids.index)  # in the order of the data
    assert sample != ids[:100]
    assert {*sample_rows(rows.shuffle(seed=1), 100)["image_id"]} == {*sample}
    assert {*sample_rows(rows, 40)["image_id"]} < {*sample}
    more = datasets.Dataset.from_dict({"image_id": [*ids, *(f"new{n}" for n in range(10))]})
    assert len({*sample_rows(more, 100)["image_id"]} & {*sample}) > 90
    assert sample_rows(rows, None) is sample_rows(rows, 1000) is rows
