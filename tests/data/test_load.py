"""One entry to every format: the same rows from each, found by itself, trained on and evaluated without a leak.

pytest tests/data/test_load.py
"""

import contextlib
import io
import json
import shutil

import datasets
import pytest
from conftest import write_recipe

from medcap.cli import main
from medcap.data.layout import DataLayout
from medcap.data.load import find_layout, load_data, load_recipe_data, read_data
from medcap.data.rocov2 import load_rocov2
from medcap.data.selection import REASONS, Selection, drop_counts, fingerprint
from medcap.data.tables import read_table
from medcap.recipe import read_recipe

CAPTIONS = {"train": 12, "valid": 6, "test": 6}  # rows of the phantoms


def quoted(cells):
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)


def phantom_rows(phantoms, split):
    table = read_table(phantoms / f"{split}_captions.csv", ["ID", "Caption"])
    return dict(zip(table["ID"], table["Caption"], strict=True))


@pytest.fixture(scope="module")
def pictures(phantoms, tmp_path_factory):
    """{split: {id: path}}: the phantoms' images as files in one folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for split in CAPTIONS:
        shutil.unpack_archive(phantoms / f"{split}_images.zip", folder)
    return {path.stem: path for path in folder.rglob("*") if path.is_file()}


def imagefolder(place, phantoms, pictures):
    for split in CAPTIONS:
        (place / split).mkdir(parents=True)
        lines = ["file_name,caption,image_id"]
        for image_id, caption in phantom_rows(phantoms, split).items():
            shutil.copy(pictures[image_id], place / split)
            lines.append(quoted([pictures[image_id].name, caption, image_id]))
        (place / split / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def one_csv(place, phantoms, pictures):
    lines = ["file_name,caption,split"]
    for split in CAPTIONS:
        for image_id, caption in phantom_rows(phantoms, split).items():
            lines.append(quoted([str(pictures[image_id]), caption, split]))
    place.mkdir()
    (place / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place / "rows.csv"


def parquet(place, phantoms, pictures):
    place.mkdir()
    for split in CAPTIONS:
        rows = phantom_rows(phantoms, split)
        columns = {
            "image": [{"bytes": pictures[image_id].read_bytes(), "path": None} for image_id in rows],
            "image_id": list(rows),
            "caption": list(rows.values()),
        }
        made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
        made.to_parquet(place / f"{split}-00000-of-00001.parquet")
    return place


MAKERS = {"imagefolder": imagefolder, "csv": one_csv, "hub": parquet}


@pytest.mark.parametrize(("name", "make"), MAKERS.items(), ids=MAKERS)
def test_every_format_is_found_and_gives_the_rows_of_the_rocov2_folder(name, make, phantoms, pictures, tmp_path):
    place = make(tmp_path / "own", phantoms, pictures)
    own, rocov2 = load_data(place), load_rocov2(phantoms)
    assert find_layout(place) == name
    assert list(own) == list(rocov2)
    for split, rows in own.items():
        assert rows.features == rocov2[split].features
        assert rows["caption"][:] == rocov2[split]["caption"][:]
        assert [image.tobytes() for image in rows["image"]] == [image.tobytes() for image in rocov2[split]["image"]]
        assert drop_counts(rows) == drop_counts(rocov2[split])
        if name != "csv":  # the ids of which are made of paths
            assert fingerprint(rows) == fingerprint(rocov2[split])


def test_rocov2s_layout_is_found_and_read_as_by_load_rocov2(phantoms):
    wanted = Selection(fraction=0.5, seed=3)
    assert find_layout(phantoms) == "rocov2"
    found = load_data(phantoms, selection=wanted, splits=["train", "validation"])
    expected = load_rocov2(phantoms, fraction=0.5, seed=3, splits=["train", "validation"])
    assert {split: fingerprint(rows) for split, rows in found.items()} == {
        split: fingerprint(rows) for split, rows in expected.items()
    }


FILES = {
    "train_captions.csv": "rocov2",
    "metadata.jsonl": "imagefolder",
    "val/metadata.csv": "imagefolder",
    "test.csv": "csv",
    "data/train.parquet": "hub",
    "other.csv": "hub",
}


@pytest.mark.parametrize(("file", "name"), FILES.items(), ids=FILES)
def test_the_format_is_told_by_the_names_of_files_unless_it_is_given(tmp_path, file, name):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert find_layout(tmp_path) == name
    assert find_layout(tmp_path, "csv") == "csv"
    assert find_layout(tmp_path / "train.csv", "auto") == "hub"  # a file that is not there


def test_names_of_the_hub_are_no_folders():
    assert find_layout("someone/something") == "hub"


def test_a_place_without_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data at '.*none': looked for .*metadata\.csv .* on the Hub"):
        load_data(tmp_path / "none")


def test_a_split_that_lacks_is_named_with_those_there_are(tmp_path):
    (tmp_path / "test.csv").write_text("file_name,caption\na.png,x\n")
    with pytest.raises(ValueError, match=r"no split 'train' in .*: it has test \(1 rows\); give it one"):
        read_data(tmp_path, splits=["train"])
    assert list(read_data(tmp_path)) == ["test"]


def test_a_recipe_says_which_rows_and_every_choice_is_counted(tmp_path, phantoms, pictures):
    shutil.copy(next(iter(pictures.values())), tmp_path / "0.png")
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
        assert counts["kept"] == 1  # all pictures are one
        assert (counts["license_filter"], counts["dedupe"], counts["exclude_leaks"]) == ("commercial", True, False)


def quietly(run, words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        run(words)
    return said.getvalue()


def test_a_folder_of_ones_own_is_trained_on_and_its_test_is_not_what_was_trained_on(
    train_script, tiny_base, phantoms, pictures, tmp_path
):
    """No option of the split is given to evaluate: the adapter's recipe has them."""
    place, lines = tmp_path / "own", ["file_name,caption,patient"]
    place.mkdir()
    captions = {i: text for split in CAPTIONS for i, text in phantom_rows(phantoms, split).items()}
    for number, (image_id, caption) in enumerate(captions.items()):
        shutil.copy(pictures[image_id], place)
        lines.append(quoted([pictures[image_id].name, caption, str(number // 2)]))
    (place / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    form = DataLayout(group_column="patient", valid_fraction=0.3, test_fraction=0.3, split_seed=4)
    recipe = write_recipe(
        tmp_path / "recipe.yaml", data_dir=str(place), model_name_or_path=str(tiny_base),
        output_dir=str(tmp_path / "run"), **{key: value for key, value in vars(form).items() if value is not None},
        lora_r=2, max_steps=1, num_beams=1, max_new_tokens=4, use_cpu=True, eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    said = quietly(train_script.main, ["--config", str(recipe)])
    words = ["evaluate", "--model", str(tmp_path / "run" / "adapter"), "--data", str(place), "--out"]
    quietly(main, [*words, str(tmp_path / "eval")])
    raw = read_data(place, form)
    described = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    result = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    predicted = read_table(tmp_path / "eval" / "predictions.csv", ["ID"])["ID"]
    assert f"validation images from {place} (imagefolder)" in said
    assert described["train"]["kept"] == len(raw["train"])
    assert described["valid"]["kept"] == len(raw["valid"])
    assert predicted == raw["test"]["image_id"][:]
    assert result["data"]["kept"] == result["n"] == len(predicted)
    assert not {*raw["train"]["image_id"], *raw["valid"]["image_id"]} & {*predicted}
    assert set(read_data(place)["test"]["image_id"]) != set(predicted)  # and it is not the default split by chance
