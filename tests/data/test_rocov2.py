"""ROCOv2 has the same rows in every layout, and excluded rows are counted."""

import io
import json
import logging
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from medcap.data import SPLITS, readers, selection
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.data.selection import Selection, check_images, drop_counts, fingerprint

# ids with dots and spaces; captions with a line break and non-breaking spaces; a row without concepts
ROWS = {
    "ROCO_1": ("CT of the chest,\u00a0axial ", "C0040405;C0817096", "jpg"),
    "ROCO_17.v2": ('He said "left"\r\nlung', "", "png"),
    "a scan (3)": ("MRI", "C0024485", "JPEG"),
}
CLEAN = ["CT of the chest, axial", 'He said "left" lung', "MRI"]
CUIS = [["C0040405", "C0817096"], [], ["C0024485"]]


def load(folder, splits=SPLITS, **selection):
    return load_data(folder, selection=Selection(**selection), splits=splits)


def encoded_image(level, extension="png"):
    buffer = io.BytesIO()
    Image.new("L", (12, 9), level).save(buffer, "PNG" if extension == "png" else "JPEG")
    return buffer.getvalue()


def cell(text):
    return '"' + text.replace('"', '""') + '"'


def write_csv(path, column, cells, end="\r\n", bom=""):
    lines = [f"{bom}ID,{column}", *(f"{image_id},{cell(text)}" for image_id, text in cells.items())]
    path.write_bytes((end.join(lines) + end).encode())


def write_images(folder, path, files):
    """Put {file name: bytes} into a zip ("x.zip:top/") or a folder ("x/y")."""
    archive, is_zip, top = path.partition(":")
    if is_zip:
        with zipfile.ZipFile(folder / archive, "w") as file:
            for name, data in files.items():
                file.writestr(top + name, data)
    else:
        (folder / path).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / path / name).write_bytes(data)


def write_split(folder, split="train", rows=ROWS, images=None, **csv_options):
    """Write one split of Zenodo's layout; images are grey, 40 levels brighter from row to row."""
    folder.mkdir(exist_ok=True)
    write_csv(folder / f"{split}_captions.csv", "Caption", {i: row[0] for i, row in rows.items()}, **csv_options)
    write_csv(folder / f"{split}_concepts.csv", "CUIs", {i: row[1] for i, row in rows.items()}, **csv_options)
    files = {f"{i}.{row[2]}": encoded_image(n * 40 % 255, row[2]) for n, (i, row) in enumerate(rows.items())}
    write_images(folder, images or f"{split}_images.zip:{split}/", files)
    return folder


def simple_rows(n, split="train"):
    return {f"{split}_{i}": (f"caption {i}", "C1", "png") for i in range(n)}


def write_parquet(folder, rows=ROWS, splits=("train", "validation", "test"), column="cui"):
    """Write what `datasets` writes for the Hub's mirror."""
    for split in splits:
        columns = {
            "image": [{"bytes": encoded_image(n * 40, row[2]), "path": None} for n, row in enumerate(rows.values())],
            "image_id": list(rows),
            "caption": [row[0] for row in rows.values()],
            column: [row[1].split(";") if row[1] else [] for row in rows.values()],
        }
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        (folder / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def _caches_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def levels(data):
    return [int(np.asarray(load_image(row["image"])).mean().round()) for row in data]


IMAGE_PATHS = [
    "train_images.zip:train/",
    "train_images.zip:",
    "train_images.zip:any/folder at all/",
    "train_images",
    "train_images/train",
    "train",
]


@pytest.mark.parametrize("path", IMAGE_PATHS)
def test_images_are_read_from_zip_and_folders(tmp_path, path):
    data = load(write_split(tmp_path / "data", images=path), splits=["train"])["train"]
    assert data.features == selection.FEATURES
    assert data.column_names == ["image_id", "image", "caption", "cuis", "manual_cuis", "group", "license"]
    assert data["image_id"][:] == list(ROWS)
    assert data["caption"][:] == CLEAN
    assert data["cuis"][:] == CUIS
    assert levels(data) == [0, 40, 80]


def test_loading_does_not_decode_images(tmp_path):
    folder = write_split(tmp_path / "data")
    write_images(folder, "train_images.zip:train/", {f"{i}.jpg": b"not an image" for i in ROWS})
    stored = load(folder, splits=["train"])["train"].cast_column("image", datasets.Image(decode=False))
    zipped = f"::{folder / 'train_images.zip'}"
    assert stored["image"][0] == {"bytes": None, "path": f"zip://train/ROCO_1.jpg{zipped}"}


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_with_any_line_ends_and_bom_is_read(tmp_path, end, bom):
    data = load(write_split(tmp_path / "data", end=end, bom=bom), splits=["train"])["train"]
    assert data["caption"][:] == CLEAN


def test_concepts_file_is_optional(tmp_path):
    folder = write_split(tmp_path / "data")
    (folder / "train_concepts.csv").unlink()
    assert load(folder, splits=["train"])["train"]["cuis"][:] == [[], [], []]


@pytest.mark.parametrize("requested", ["valid", "validation"])
@pytest.mark.parametrize("written", ["valid", "validation"])
def test_validation_is_read_as_valid(tmp_path, requested, written):
    data = load(write_split(tmp_path / "data", written), splits=[requested])
    assert list(data) == ["valid"]
    assert len(data["valid"]) == 3


@pytest.mark.parametrize("column", ["cui", "cuis"])
def test_hub_mirror_has_the_rows_of_zenodo(tmp_path, column):
    hub = load(write_parquet(tmp_path / "hub", column=column))
    zenodo = load(write_split(tmp_path / "zenodo"), splits=["train"])["train"]
    assert list(hub) == ["train", "valid", "test"]
    assert hub["valid"].features == selection.FEATURES
    assert hub["valid"].column_names == zenodo.column_names
    for name in ("image_id", "caption", "cuis"):
        assert hub["valid"][name][:] == zenodo[name][:]
    assert levels(hub["valid"]) == levels(zenodo)
    assert fingerprint(hub["train"]) == fingerprint(zenodo)
    assert drop_counts(hub["train"]) == drop_counts(zenodo)


def test_fraction_selects_the_same_rows_of_hub_mirror_and_zenodo(tmp_path):
    rows = {**simple_rows(60), "train_blank": ("\u202f", "", "png")}
    hub = load(write_parquet(tmp_path / "hub", rows), fraction=0.3, splits=["train"])["train"]
    zenodo = load(write_split(tmp_path / "zenodo", rows=rows), fraction=0.3, splits=["train"])["train"]
    assert hub["image_id"][:] == zenodo["image_id"][:]
    assert drop_counts(hub) == drop_counts(zenodo)
    assert drop_counts(hub)["blank"] == 1


def test_fraction_is_independent_of_order_and_nested(tmp_path):
    rows = simple_rows(400)
    folder = write_split(tmp_path / "data", rows=rows)
    reverse = write_split(tmp_path / "reverse", rows=dict(reversed(rows.items())))

    def ids(data, fraction, seed=0):
        return set(load(data, fraction=fraction, seed=seed, splits=["train"])["train"]["image_id"])

    assert ids(folder, 0.1) == ids(reverse, 0.1)
    assert ids(folder, 0.1) < ids(folder, 0.2) < ids(folder, 1.0) == set(rows)
    assert 20 < len(ids(folder, 0.1)) < 60
    assert ids(folder, 0.1) != ids(folder, 0.1, seed=1)


def test_hash_of_fraction_is_stable():
    """Published results depend on blake2b, 8 bytes, of seed:id."""
    chosen = [i for i in range(1, 60) if selection._in_fraction(f"ROCOv2_2023_train_{i:06d}", 0.1, 42)]
    assert chosen == [3, 6, 16, 35]


def test_fraction_applies_to_train_only(tmp_path):
    for split in ("train", "valid", "test"):
        write_split(tmp_path / "data", split, simple_rows(40, split))
    data = load(tmp_path / "data", fraction=0.3)
    assert len(data["train"]) < 40
    assert len(data["valid"]) == len(data["test"]) == 40
    assert drop_counts(data["test"])["fraction"] == 1.0


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, 10, float("nan")])
def test_fraction_out_of_range_raises(tmp_path, fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, got"):
        load(tmp_path, fraction=fraction)


def test_fraction_without_rows_raises(tmp_path):
    with pytest.raises(ValueError, match="no rows left: all 3 rows of train were dropped: 3 outside_fraction"):
        load(write_split(tmp_path / "data"), fraction=1e-6, splits=["train"])


@pytest.mark.parametrize("blank", ["", "   ", "\u202f", "\u00a0\r\n"])
def test_blank_captions_are_dropped_and_counted(tmp_path, caplog, blank):
    rows = {**ROWS, "ROCO_4": (blank, "C1", "png")}
    data = load(write_split(tmp_path / "data", rows=rows), splits=["train"])["train"]
    assert data["image_id"][:] == list(ROWS)
    assert drop_counts(data)["blank"] == 1
    assert "1 of 4 captions of train are blank: ROCO_4" in caplog.text


def write_images_except(folder, rows, missing):
    files = {f"{i}.png": encoded_image(9) for i in rows if i not in missing}
    write_images(folder, "train_images.zip:train/", files)


def test_too_many_missing_images_raise(tmp_path):
    rows = simple_rows(20)
    folder = write_split(tmp_path / "data", rows=rows)
    write_images_except(folder, rows, missing=list(rows)[:7])
    line = "7 of 20 images of train are missing: train_0, train_1, train_2, train_3, train_4 and 2 more. At most 0.10%"
    with pytest.raises(ValueError, match=line):
        load(folder, splits=["train"])


def test_few_missing_images_are_dropped_and_counted(tmp_path, caplog):
    rows = simple_rows(20)
    folder = write_split(tmp_path / "data", rows=rows)
    write_images_except(folder, rows, missing=["train_7"])
    data = load(folder, splits=["train"], max_broken=0.05)["train"]
    assert "train_7" not in data["image_id"][:]
    assert drop_counts(data) == counts(read=20, missing=1, kept=19)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 of 20 images of train are missing: train_7. They are dropped" in caplog.text


def counts(**changed):
    zero = dict.fromkeys(["read", *selection.REASONS, "kept", "seed"], 0)
    return {**zero, "fraction": 1.0, "license_filter": "any", "dedupe": False, "exclude_leaks": False, **changed}


def test_drop_counts_add_up_and_survive_transformations(tmp_path):
    rows = {**simple_rows(60), "blank": (" ", "", "png")}
    folder = write_split(tmp_path / "data", rows=rows)
    data = load(folder, fraction=0.5, seed=3, splits=["train"])["train"]
    found = drop_counts(data)
    parts = (*selection.REASONS, "kept")
    assert found["read"] == 61 == sum(found[part] for part in parts)
    assert found["kept"] == len(data)
    assert (found["fraction"], found["seed"]) == (0.5, 3)
    for derived in (
        data.select([0, 2]),
        data.filter(lambda caption: "1" in caption, input_columns="caption"),
        data.cast_column("image", datasets.Image(decode=False)).with_transform(lambda batch: batch),
        data.shuffle(seed=0),
        data.map(lambda caption: {"n": len(caption)}, input_columns="caption"),
        check_images(data),
    ):
        assert drop_counts(derived) == found


def test_other_data_sets_have_no_drop_counts():
    assert drop_counts(datasets.Dataset.from_dict({"a": [1]})) == {}


@pytest.mark.parametrize("num_proc", [None, 2])
def test_undecodable_images_are_dropped_and_counted(tmp_path, caplog, num_proc):
    folder = write_split(tmp_path / "data", rows=simple_rows(10))
    files = {f"train_{i}.png": encoded_image(i) for i in range(10)}
    files["train_3.png"] = files["train_3.png"][:-20]
    files["train_8.png"] = b"<html>"
    write_images(folder, "train_images.zip:train/", files)
    data = load(folder, splits=["train"])["train"]
    good = check_images(data, max_broken=0.2, num_proc=num_proc)
    assert good["image_id"][:] == [f"train_{i}" for i in range(10) if i not in (3, 8)]
    assert drop_counts(good) == counts(read=10, undecodable=2, kept=8)
    assert drop_counts(data) == counts(read=10, kept=10)
    assert good.features == selection.FEATURES
    for part in ("2 of 10 images of train cannot be decoded: train_3 (", "truncated", "train_8 (", "not an image"):
        assert part in caplog.text
    with pytest.raises(ValueError, match=r"2 of 10 images of train cannot be decoded: train_3 .* At most 0\.10%"):
        check_images(data)


def test_changed_image_is_decoded_again(tmp_path):
    folder = write_split(tmp_path / "data", images="train")
    (folder / "train" / "ROCO_1.jpg").write_bytes(b"")
    data = load(folder, splits=["train"])["train"]
    assert len(check_images(data, max_broken=1)) == 2
    (folder / "train" / "ROCO_1.jpg").write_bytes(encoded_image(5))
    assert len(check_images(data)) == 3


def test_fingerprint_depends_on_ids_and_captions_only(tmp_path):
    data = load(write_split(tmp_path / "data"), splits=["train"])["train"]
    elsewhere = load(write_split(tmp_path / "elsewhere", images="train"), splits=["train"])["train"]
    other = {**ROWS, "ROCO_1": ("another caption", "", "jpg")}
    changed = load(write_split(tmp_path / "changed", rows=other), splits=["train"])["train"]
    assert len(fingerprint(data)) == 16
    assert fingerprint(data) == fingerprint(elsewhere) == fingerprint(data.select([2, 0, 1]))
    assert fingerprint(data) == fingerprint(data.with_transform(lambda batch: 1 / 0))
    assert len({fingerprint(data), fingerprint(changed), fingerprint(data.select([0, 1]))}) == 3


def test_missing_split_raises(tmp_path):
    folder = write_split(tmp_path / "data", "train")
    write_split(folder, "test")
    with pytest.raises(ValueError, match=r"no split 'valid' in .*: no valid_captions\.csv; found: test, train"):
        load(folder)
    hub = write_parquet(tmp_path / "hub", splits=["train", "validation"])
    with pytest.raises(ValueError, match=r"no split 'test' in .*hub: it has train \(3 rows\), valid \(3 rows\)"):
        load(hub)


def test_split_without_images_raises(tmp_path):
    folder = write_split(tmp_path / "data")
    (folder / "train_images.zip").unlink()
    with pytest.raises(
        ValueError, match=r"no images of split 'train' in .*data: expected train_images\.zip, train_im"
    ):
        load(folder, splits=["train"])


def test_splits_given_as_string_raise(tmp_path):
    with pytest.raises(ValueError, match=r"splits must be a list of names, got 'train': write \['train'\]"):
        load_data(tmp_path, splits="train")


@pytest.mark.parametrize("max_broken", [-0.1, 5])
def test_max_broken_out_of_range_raises(tmp_path, max_broken):
    with pytest.raises(ValueError, match="max_broken must be 0 to 1, got"):
        load(tmp_path, max_broken=max_broken)


def test_parquet_without_needed_columns_raises(tmp_path):
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"scan": ["a"], "text": ["b"]}).to_parquet(tmp_path / "hub" / "train.parquet")
    line = "split train: no column 'image', it has scan, text; set image_column"
    with pytest.raises(ValueError, match=line):
        load(tmp_path / "hub", splits=["train"])


@pytest.mark.parametrize("name", ["nothing_here", "data/rocov2", "./a/b/c", "~/no such folder", "folder"])
def test_path_without_data_raises_with_advice(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(readers, "load_dataset", lambda name: pytest.fail("requested from the Hub"))
    line = r"no data at '.*': expected .*train_captions\.csv \(ROCOv2\).*`medcap data phantom --out DIR`"
    with pytest.raises(FileNotFoundError, match=line):
        load(name)


def test_damaged_parquet_raises(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"^/.*: Parquet magic bytes not found.*$"):
        load(tmp_path, splits=["train"])


def test_description_is_json(tmp_path):
    data = load(write_split(tmp_path / "data"), splits=["train"])["train"]
    assert json.loads(data.info.description) == {"medcap": drop_counts(data)}
