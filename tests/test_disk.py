"""A full disk gives one line with the path, the space and what to do, whatever library wrote.

A limit of the file size makes every library fail as on a full disk.
"""

import contextlib
import errno
import os
import resource
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

from medcap.disk import DiskFullError, disk_full, writing
from medcap.evaluation.csv_files import write_predictions
from medcap.io import atomic_path, new_folder, write_json
from medcap.logs import report_errors
from medcap.modeling.lora import add_lora
from medcap.recipe import read_recipe
from medcap.training.run_folder import save_adapter

SPACE = "Please free some space (or raise the quota or the limit of file sizes), then run the same command again"


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_png(path):
    with atomic_path(path) as part:
        Image.effect_noise((100, 100), 50).save(part, format="png")


def write_release(path):
    with new_folder(path) as part:
        save_file({"weight": torch.zeros(1000)}, part / "adapter_model.safetensors")


WRITERS = {
    "metrics.json": lambda path: write_json(path, ["text"] * 1000),
    "predictions.csv": lambda path: write_predictions(path, {str(n): "a mass" for n in range(1000)}),
    "samples.png": write_png,
    "release": write_release,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path, name, write):
    with files_of_at_most(1000), pytest.raises(DiskFullError) as full:
        write(tmp_path / name)
    line = str(full.value)
    assert line.startswith(f"{tmp_path / name} could not be written: File too large (")
    assert line.endswith(f" free). {SPACE}")
    assert list(tmp_path.iterdir()) == []


def test_adapter_that_does_not_fit_is_named_with_its_size(tmp_path, blip):
    """The earlier adapter stays."""
    model, processor = blip
    adapted = SimpleNamespace(
        model=add_lora(model, targets="text", r=8, alpha=8, dropout=0.0),
        processor=processor,
        generation_config=model.generation_config,
        initial={},
    )
    recipe = read_recipe(["--config", str(ROOT / "recipes/phantom/lora.yaml"), "--use_cpu", "true"])
    (tmp_path / "adapter").mkdir()
    with (
        files_of_at_most(20_000),
        pytest.raises(DiskFullError, match=r"adapter could not be written: .*MB needed, .*"),
    ):
        save_adapter(tmp_path / "adapter", adapted, recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_code_is_found_in_causes_and_in_texts(code, tmp_path):
    text = os.strerror(code)
    wrapped = RuntimeError("write failed")
    wrapped.__cause__ = OSError(code, text)
    for error in (OSError(code, text), ValueError(f"I/O error: {text} (os error {code})"), wrapped):
        assert disk_full(error) == text
        with pytest.raises(DiskFullError, match=f"x could not be written: {text}"), writing(tmp_path / "x"):
            raise error
    with pytest.raises(PermissionError), writing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "denied")


def test_full_disk_of_a_cache_gives_advice(capsys):
    with pytest.raises(SystemExit, match="1"), report_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x.arrow")
    assert capsys.readouterr().err == f"medcap: error: [Errno 28] No space left on device: '/cache/x.arrow'. {SPACE}\n"
