"""Files from untrusted sources are read and never executed: pickles, model code, archives, YAML, pipes (SECURITY.md).

Each malicious file creates a marker folder when it is executed.
"""

import json
import os
import pickle
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from medcap import logs
from medcap.cli import main
from medcap.data.images import read_image
from medcap.data.load import load_data
from medcap.evaluation.csv_files import write_predictions
from medcap.inference import load_captioner
from medcap.modeling.feature_store import FeatureCache
from medcap.recipe import RecipeError, read_recipe, read_yaml
from medcap.training.checkpoints import write_checksums


class MaliciousPickle:
    """An object that creates the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """The folder that a malicious file creates; the test fails if it exists at the end."""
    marker = tmp_path / "was-executed"
    yield marker
    assert not marker.exists()


def exit_status(command, argv) -> int:
    try:
        command(argv)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_malicious_pickle_creates_the_marker(tmp_path):
    torch.save(MaliciousPickle(tmp_path / "marker"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))], ids=["zip", "raw"]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickled_weights_are_not_executed(name, save, marker, trained_run, tiny_base, tmp_path, capsys):
    source = tiny_base if name == "pytorch_model.bin" else trained_run.folder / "adapter"
    model = shutil.copytree(source, tmp_path / "model")
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    save(MaliciousPickle(marker), model / name)
    Image.new("L", (20, 20)).save(tmp_path / "x.png")
    assert exit_status(main, ["caption", str(tmp_path / "x.png"), "--model", str(model)]) == 1
    assert f"error: {model} cannot be used: UnpicklingError" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickles_in_a_resumed_checkpoint_are_not_executed(name, marker, trained_run, train_script, tmp_path):
    run = shutil.copytree(trained_run.folder, tmp_path / "run")
    for checkpoint in run.glob("checkpoint-*"):
        for file in (name, "training_args.bin"):
            torch.save(MaliciousPickle(marker), checkpoint / file)
        write_checksums(checkpoint)  # an attacker would write matching checksums
    argv = ["--config", str(run / "recipe.yaml"), "--output_dir", str(run), "--resume_from_checkpoint", "last"]
    assert exit_status(train_script.main, [*argv, "--num_train_epochs", "3", "--allow_changes"]) == 1


DAMAGED = {
    "trainer_state.json": ('{"x": 1}', 2, "is damaged (trainer_state.json cannot be parsed)"),
    "optimizer.pt": ("PK", 1, "cannot be used: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoint_is_reported(name, trained_run, train_script, tmp_path, capsys):
    run = shutil.copytree(trained_run.folder, tmp_path / "run")
    content, status, message = DAMAGED[name]
    (run / "checkpoint-6" / name).write_text(content)
    write_checksums(run / "checkpoint-6")
    argv = ["--config", str(run / "recipe.yaml"), "--output_dir", str(run), "--num_train_epochs", "3"]
    argv += ["--allow_changes", "--resume_from_checkpoint", str(run / "checkpoint-6")]
    assert exit_status(train_script.main, argv) == status
    assert f"{run / 'checkpoint-6'} {message}" in capsys.readouterr().err


CODE = "import os\nos.mkdir({marker!r})\nclass Config: pass\n"


@pytest.mark.parametrize("model_type", ["blip", "unknown"])
def test_code_of_a_model_is_not_executed(model_type, marker, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115 - a prompt would fail at once
    model = shutil.copytree(tiny_base, tmp_path / "model")
    (model / "evil.py").write_text(CODE.format(marker=str(marker)))
    auto_map = dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor"), "evil.Config")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    if model_type != "blip":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        with pytest.raises(ValueError, match=r"cannot be used|custom code"):
            load_captioner(str(model))
    else:
        load_captioner(str(model))
    assert "[y/N]" not in capsys.readouterr().out


def test_recipe_with_tags_aliases_or_deep_nesting_is_refused(marker, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"seed: !!python/object/apply:os.mkdir [{marker}]\n")
    with pytest.raises(RecipeError, match=r"not a YAML file: .*could not determine a constructor"):
        read_yaml(recipe)
    lines = ["prompt: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    recipe.write_text("\n".join(lines))
    with pytest.raises(
        RecipeError, match=r"recipe.yaml: aliases \(\*name\) are not allowed in a recipe: repeat the value"
    ):
        read_recipe(["--config", str(recipe)])
    for value, reason in (("[" * 100_000, "more than 1,000 brackets"), ("- " * 5_000, "values are nested too deeply")):
        recipe.write_text(f"prompt:\n  {value}")
        with pytest.raises(RecipeError, match=f"recipe.yaml: not a recipe: {reason}"):
            read_recipe(["--config", str(recipe)])


def test_invalid_recipe_of_an_adapter_is_reported(trained_run, tmp_path, capsys):
    model = shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    (model / "recipe.yaml").write_text("- prompt\n")
    assert exit_status(main, ["caption", __file__, "--model", str(model)]) == 2
    assert capsys.readouterr().err.endswith("recipe.yaml: a recipe is a list of `key: value` lines, got list\n")


def test_zip_archives_are_not_extracted(phantoms, tmp_path):
    data = shutil.copytree(phantoms, tmp_path / "data")
    member = next(name for name in zipfile.ZipFile(data / "train_images.zip").namelist() if name.endswith(".jpg"))
    with zipfile.ZipFile(data / "train_images.zip", "a") as archive:
        archive.writestr("../../outside.jpg", archive.read(member))
        link = zipfile.ZipInfo("train/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    rows = load_data(data, splits=["train"])["train"].cast_column("image", datasets.Image(decode=False))
    assert all(read_image(entry["path"]).width for entry in rows["image"])
    with pytest.raises(ValueError, match=r"cannot read image zip://train/link.jpg::.*: not an image"):
        read_image(f"zip://train/link.jpg::{data / 'train_images.zip'}")
    assert sorted(tmp_path.rglob("*")) == before


def test_image_path_outside_the_data_folder_is_refused(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("file_name,caption,split\n../secret.png,a mass,train\n")
    with pytest.raises(ValueError, match=r"secret\.png"):
        load_data(tmp_path / "data", splits=["train"])


def test_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: not a file"):
        read_image(tmp_path / "x.png")


def test_error_line_redacts_tokens():
    token = "hf_" + "aB3" * 12
    assert logs.error_line(ValueError(f"GET /x with Bearer {token} failed")) == "GET /x with Bearer (token) failed"


def test_feature_cache_is_readable_by_its_owner_only(tmp_path):
    FeatureCache(tmp_path / "features", (5, 8), torch.float32)
    assert stat.S_IMODE((tmp_path / "features").stat().st_mode) & 0o077 == 0


def test_captions_are_no_formulas_in_a_spreadsheet(tmp_path):
    """`tests/test_io.py` checks that medcap reads the captions back unchanged."""
    write_predictions(tmp_path / "predictions.csv", {"a": "=1+1", "b": "-29 HU", "c": "29 HU"})
    assert (tmp_path / "predictions.csv").read_text() == "ID,Caption\na,'=1+1\nb,'-29 HU\nc,29 HU\n"


def test_decompression_bomb_is_refused(tmp_path):
    Image.fromarray(np.zeros((14_000, 14_000), dtype=bool)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.png: .*exceeds limit|bomb\.png: .*decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_package_disables_no_safety_option_of_its_libraries():
    unsafe = ("trust_remote_code=True", "weights_only=False", "allow_pickle=True", "yaml.load(", "yaml.unsafe_load",
              "pickle.load", "extractall(", "share=True", '"0.0.0.0"')  # fmt: skip
    root = Path(__file__).parents[1]
    files = [*(root / "medcap").rglob("*.py"), *(root / "scripts").rglob("*.py")]
    assert [(path.name, word) for path in files for word in unsafe if word in path.read_text()] == []
    assert len(files) > 60
