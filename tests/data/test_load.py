"""load_data detects every format, and evaluation uses the splits of training."""

import contextlib
import io
import json
import shutil

import datasets
import pytest
from conftest import write_recipe

from medcap.cli import main
from medcap.data.images import load_image
from medcap.data.layout import DataLayout
from medcap.data.load import find_layout, load_data, load_recipe_data, read_data
from medcap.data.selection import REASONS, drop_counts, fingerprint
from medcap.data.tables import read_table
from medcap.recipe import read_recipe

CAPTIONS = {"train": 12, "valid": 6, "test": 6}  # rows of the phantoms


def quoted(cells):
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)


def phantom_rows(phantoms, split):
    table = read_table(phantoms / f"{split}_captions.csv", ["ID", "Caption"])
    return dict(zip(table["ID"], table["Caption"], strict=True))


@pytest.fixture(scope="module")
def images(phantoms, tmp_path_factory):
    """{id: path}: the phantoms' images as files in one folder."""
    folder = tmp_path_factory.mktemp("images")
    for split in CAPTIONS:
        shutil.unpack_archive(phantoms / f"{split}_images.zip", folder)
    return {path.stem: path for path in folder.rglob("*") if path.is_file()}


def imagefolder(folder, phantoms, images):
    for split in CAPTIONS:
        (folder / split).mkdir(parents=True)
        lines = ["file_name,caption,image_id"]
        for image_id, caption in phantom_rows(phantoms, split).items():
            shutil.copy(images[image_id], folder / split)
            lines.append(quoted([images[image_id].name, caption, image_id]))
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def one_csv(folder, phantoms, images):
    lines = ["file_name,caption,split"]
    for split in CAPTIONS:
        for image_id, caption in phantom_rows(phantoms, split).items():
            lines.append(quoted([str(images[image_id]), caption, split]))
    folder.mkdir()
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.csv"


def parquet(folder, phantoms, images):
    folder.mkdir()
    for split in CAPTIONS:
        rows = phantom_rows(phantoms, split)
        columns = {
            "image": [{"bytes": images[image_id].read_bytes(), "path": None} for image_id in rows],
            "image_id": list(rows),
            "caption": list(rows.values()),
        }
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


MAKERS = {"imagefolder": imagefolder, "csv": one_csv, "hub": parquet}


@pytest.mark.parametrize(("name", "make"), MAKERS.items(), ids=MAKERS)
def test_every_format_has_the_rows_of_rocov2(name, make, phantoms, images, tmp_path):
    path = make(tmp_path / "data", phantoms, images)
    rows_by_split, rocov2 = load_data(path, DataLayout(allow_outside=True)), load_data(phantoms)
    assert find_layout(path) == name
    assert list(rows_by_split) == list(rocov2)
    for split, rows in rows_by_split.items():
        assert rows.features == rocov2[split].features
        assert rows["caption"][:] == rocov2[split]["caption"][:]
        for image, expected in zip(rows["image"], rocov2[split]["image"], strict=True):
            assert load_image(image).tobytes() == load_image(expected).tobytes()
        assert drop_counts(rows) == drop_counts(rocov2[split])
        if name != "csv":  # its ids are made from paths
            assert fingerprint(rows) == fingerprint(rocov2[split])


FILES = {
    "train_captions.csv": "rocov2",
    "metadata.jsonl": "imagefolder",
    "val/metadata.csv": "imagefolder",
    "test.csv": "csv",
    "data/train.parquet": "hub",
    "other.csv": "hub",
}


@pytest.mark.parametrize(("file", "name"), FILES.items(), ids=FILES)
def test_format_is_detected_by_file_names(tmp_path, file, name):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert find_layout(tmp_path) == name
    assert find_layout(tmp_path, "csv") == "csv"
    assert find_layout(tmp_path / "train.csv", "auto") == "hub"  # does not exist
    assert find_layout(tmp_path, "rocov2") == ("rocov2" if name == "rocov2" else "hub")


def test_hub_names_are_not_folders():
    assert find_layout("someone/something") == "hub"


def test_path_without_data_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data at '.*none': expected .*metadata\.csv .* on the Hub"):
        load_data(tmp_path / "none")


def test_missing_split_raises(tmp_path):
    (tmp_path / "test.csv").write_text("file_name,caption\na.png,x\n")
    with pytest.raises(ValueError, match=r"no split 'train' in .*: it has test \(1 rows\); add this split"):
        read_data(tmp_path, splits=["train"])
    assert list(read_data(tmp_path)) == ["test"]


def test_recipe_selects_rows_and_drops_are_counted(tmp_path, phantoms, images):
    shutil.copy(next(iter(images.values())), tmp_path / "0.png")
    for i in range(1, 60):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    lines = [f"{i}.png,caption {i},{i % 30},{'CC BY' if i % 2 else 'CC BY-NC'}" for i in range(60)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,patient,license", *lines]) + "\n")
    keys = {
        "data_dir": str(tmp_path), "caption_column": "text", "group_column": "patient", "split_seed": 1,
        "valid_fraction": 0.3, "test_fraction": 0.2, "license_filter": "commercial", "dedupe": True,
        "model_name_or_path": "base", "output_dir": "run", "use_cpu": True,
    }  # fmt: skip
    recipe = read_recipe(["--config", str(write_recipe(tmp_path / "r.yaml", **keys))])
    raw = read_data(tmp_path, DataLayout(caption_column="text", group_column="patient", split_seed=1,
                                     valid_fraction=0.3, test_fraction=0.2))  # fmt: skip
    for split, rows in load_recipe_data(recipe.data, ["train", "valid"]).items():
        counts = drop_counts(rows)
        assert counts["read"] == len(raw[split]) == sum(counts[reason] for reason in (*REASONS, "kept"))
        assert counts["license"] > 0
        assert counts["duplicate"] > 0
        assert counts["kept"] == 1  # all images are equal
        assert (counts["license_filter"], counts["dedupe"], counts["exclude_leaks"]) == ("commercial", True, False)


def stderr_of(run, argv):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        run(argv)
    return stderr.getvalue()


def test_evaluation_uses_the_splits_of_training(train_script, tiny_base, phantoms, images, tmp_path):
    """`medcap evaluate` takes the layout from the adapter's recipe."""
    folder, lines = tmp_path / "data", ["file_name,caption,patient"]
    folder.mkdir()
    captions = {i: text for split in CAPTIONS for i, text in phantom_rows(phantoms, split).items()}
    for number, (image_id, caption) in enumerate(captions.items()):
        shutil.copy(images[image_id], folder)
        lines.append(quoted([images[image_id].name, caption, str(number // 2)]))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    layout = DataLayout(group_column="patient", valid_fraction=0.3, test_fraction=0.3, split_seed=4)
    recipe = write_recipe(
        tmp_path / "recipe.yaml", data_dir=str(folder), model_name_or_path=str(tiny_base),
        output_dir=str(tmp_path / "run"), **{key: value for key, value in vars(layout).items() if value is not None},
        lora_r=2, max_steps=1, num_beams=1, max_new_tokens=4, use_cpu=True, eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    stderr = stderr_of(train_script.main, ["--config", str(recipe)])
    argv = ["evaluate", "--model", str(tmp_path / "run" / "adapter"), "--data", str(folder), "--out"]
    stderr_of(main, [*argv, str(tmp_path / "eval")])
    raw = read_data(folder, layout)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    result = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    predicted = read_table(tmp_path / "eval" / "predictions.csv", ["ID"])["ID"]
    assert f"validation images from {folder} (imagefolder)" in stderr
    assert environment["train"]["kept"] == len(raw["train"])
    assert environment["valid"]["kept"] == len(raw["valid"])
    assert predicted == raw["test"]["image_id"][:]
    assert result["data"]["kept"] == result["n"] == len(predicted)
    assert not {*raw["train"]["image_id"], *raw["valid"]["image_id"]} & {*predicted}
    assert set(read_data(folder)["test"]["image_id"]) != set(predicted)  # differs from the default split
