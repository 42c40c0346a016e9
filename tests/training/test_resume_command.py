"""Resuming by command: the choice of the checkpoint, changes since the run began, and errors of reading images.

pytest tests/training/test_resume_command.py
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal

import pytest
import torch
from conftest import write_recipe

from medcap.data.images import ImageTransform
from medcap.locks import lock_folder
from medcap.modeling.load import load_base
from medcap.phantom.dataset import write_phantom
from medcap.recipe import RecipeError, read_recipe
from medcap.training.checkpoints import write_checksums
from medcap.training.run_folder import checkpoint_to_resume, environment_changes, recipe_changes, remove_leftovers


@pytest.fixture
def recipe_in(trained_run):
    """Return the recipe of the trained run for another folder, with other keys."""

    def make(folder, **keys):
        recipe = read_recipe(["--config", str(trained_run.recipe)])
        training = dataclasses.replace(recipe.training, output_dir=str(folder), **keys)
        return dataclasses.replace(recipe, training=training)

    return make


@pytest.fixture
def interrupted(trained_run, tmp_path):
    """A copy of the trained run, as a kill after its last checkpoint leaves it."""
    run = tmp_path / "interrupted"
    shutil.copytree(trained_run.folder, run)
    shutil.rmtree(run / "adapter")
    return run


def damage(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"torn")


def test_same_command_resumes_from_the_newest_checkpoint(recipe_in, interrupted, caplog):
    assert checkpoint_to_resume(recipe_in(interrupted)) == str(interrupted / "checkpoint-6")
    assert caplog.messages == [f"resuming from {interrupted / 'checkpoint-6'}"]


def test_a_checkpoint_without_optimizer_is_resumed_only_on_request(recipe_in, trained_run, tmp_path, caplog):
    part, final = tmp_path / "part", tmp_path / "run" / "checkpoint-6"
    shutil.copytree(trained_run.folder / "checkpoint-6", part)
    for path in (*part.glob("*.pt"), *part.glob("*.pth"), *part.glob("loss_window_*")):
        path.unlink()  # what save_only_model leaves out
    write_checksums(part)
    final.parent.mkdir()
    part.rename(final)
    problem = f"{final} holds only the model (save_only_model): optimizer and schedule would start again"
    settings = {"resume_from_checkpoint": "last", "load_best_model_at_end": False, "save_only_model": True}
    with pytest.raises(RecipeError) as caught:
        checkpoint_to_resume(recipe_in(tmp_path / "run", **settings))
    assert str(caught.value).startswith(f"{problem}; use another --output_dir")
    assert checkpoint_to_resume(recipe_in(tmp_path / "run", **settings, allow_changes=True)) == str(final)
    assert problem in caplog.messages


def test_damaged_checkpoint_is_named_and_the_one_before_it_used(recipe_in, interrupted, caplog):
    damage(interrupted / "checkpoint-6")
    assert checkpoint_to_resume(recipe_in(interrupted)) == str(interrupted / "checkpoint-3")
    assert len(caplog.messages) == 1
    assert "checkpoint-6 is damaged (optimizer.pt has 4 bytes of" in caplog.text
    assert f"; resuming from {interrupted / 'checkpoint-3'}" in caplog.text


def test_without_undamaged_checkpoint_training_starts_from_scratch_unless_one_is_requested(
    recipe_in, interrupted, caplog
):
    for number in (3, 6):
        damage(interrupted / f"checkpoint-{number}")
    assert checkpoint_to_resume(recipe_in(interrupted)) is None
    assert "no other checkpoint exists, training from scratch" in caplog.text
    for requested in ("last", str(interrupted / "checkpoint-6")):
        with pytest.raises(RecipeError, match=r"checkpoint-6 is damaged \(optimizer.pt has .*name another"):
            checkpoint_to_resume(recipe_in(interrupted, resume_from_checkpoint=requested))


def test_run_killed_before_its_first_checkpoint_starts_from_scratch(recipe_in, interrupted):
    for number in (3, 6):
        shutil.rmtree(interrupted / f"checkpoint-{number}")
    assert checkpoint_to_resume(recipe_in(interrupted, learning_rate=1.0)) is None


def test_changed_recipe_is_refused_unless_allowed(recipe_in, interrupted, caplog):
    other = recipe_in(interrupted, learning_rate=0.01)
    with pytest.raises(
        RecipeError, match=r"began with other settings: learning_rate was 0.02 and is 0.01; .*--allow_changes"
    ):
        checkpoint_to_resume(other)
    allowed = recipe_in(interrupted, learning_rate=0.01, allow_changes=True)
    assert checkpoint_to_resume(allowed) == str(interrupted / "checkpoint-6")
    assert "with changes: learning_rate was 0.02 and is 0.01" in caplog.text


def test_paths_and_reading_may_change(recipe_in, interrupted, tmp_path):
    free = recipe_in(tmp_path / "elsewhere", dataloader_num_workers=2, disable_tqdm=True, push_to_hub=True)
    assert recipe_changes(interrupted / "recipe.yaml", free) == []


def test_explicit_default_is_not_a_change(interrupted):
    argv = ["--config", str(interrupted / "recipe.yaml"), "--weight_decay", "0", "--save_strategy", "epoch"]
    assert recipe_changes(interrupted / "recipe.yaml", read_recipe(argv)) == []
    argv[3] = "0.5"
    assert recipe_changes(interrupted / "recipe.yaml", read_recipe(argv)) == ["weight_decay was 0.0 and is 0.5"]


def test_training_starts_from_scratch_in_a_new_or_empty_folder(recipe_in, tmp_path):
    assert checkpoint_to_resume(recipe_in(tmp_path / "new")) is None
    assert checkpoint_to_resume(recipe_in(tmp_path)) is None


def test_training_resumes_from_the_newest_or_the_named_checkpoint(recipe_in, trained_run):
    run = trained_run.folder
    for requested, step in (("last", 6), (str(run / "checkpoint-3"), 3)):
        recipe = recipe_in(run, resume_from_checkpoint=requested)
        assert checkpoint_to_resume(recipe) == str(run / f"checkpoint-{step}")


@pytest.mark.parametrize(
    ("left", "message"), [("checkpoint-3", "a run without recipe"), ("adapter", "a finished run")]
)
def test_folder_of_another_or_a_finished_run_raises(recipe_in, tmp_path, left, message):
    (tmp_path / left).mkdir()
    with pytest.raises(RecipeError, match=f"{tmp_path} is {message}.*--resume_from_checkpoint last"):
        checkpoint_to_resume(recipe_in(tmp_path))


def test_last_without_checkpoint_raises(recipe_in, tmp_path):
    with pytest.raises(RecipeError, match=f"resume_from_checkpoint is last, but {tmp_path} has no checkpoint"):
        checkpoint_to_resume(recipe_in(tmp_path, resume_from_checkpoint="last"))


def test_folder_that_is_not_a_checkpoint_raises(recipe_in, tmp_path, trained_run):
    for folder in (tmp_path / "none", trained_run.folder / "adapter"):
        with pytest.raises(RecipeError, match=f"{folder} is not a checkpoint: it has no trainer_state.json"):
            checkpoint_to_resume(recipe_in(tmp_path, resume_from_checkpoint=str(folder)))


THEN = {
    "data": {"train": {"rows": 12, "fingerprint": "a", "images": "b"}},
    "precision": "fp32", "processes": 1, "base": "c",
}  # fmt: skip
CHANGES = {
    "captions": ({"data": {"train": {"rows": 12, "fingerprint": "x", "images": "b"}}}, "train split has other data"),
    "rows": ({"data": {"train": {"rows": 13, "fingerprint": "x", "images": "x"}}}, r"\(12 images then, 13 now\)"),
    "images": ({"data": {"train": {"rows": 12, "fingerprint": "a", "images": "x"}}}, "train split has other images"),
    "precision": ({"precision": "bf16", "base": "x"}, "^precision was fp32 and is bf16$"),
    "processes": ({"processes": 2}, "^processes was 1 and is 2$"),
    "base": ({"base": "x"}, "^the base model has other weights$"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_environment_changes_are_named(change, message):
    assert environment_changes(THEN, THEN) == []
    (text,) = environment_changes(THEN, {**THEN, **change})
    assert re.search(message, text)


def run_training(train_script, run, *argv):
    """Train the recipe of `run` in `run`, in this process; return the status and stderr."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            train_script.main(["--config", str(run / "recipe.yaml"), "--output_dir", str(run), *map(str, argv)])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    assert "Traceback" not in stderr.getvalue()
    return status, stderr.getvalue()


def test_changed_data_images_and_base_model_are_refused_with_status_2(
    train_script, trained_run, interrupted, phantoms, tiny_base, tmp_path
):
    """The paths stay the same; only the content changes."""
    data, base = tmp_path / "data", tmp_path / "base"
    unpack(phantoms, data)
    shutil.copytree(tiny_base, base)
    recipe = read_recipe(["--config", str(interrupted / "recipe.yaml")]).as_dict()
    moved = {**recipe, "data_dir": str(data), "model_name_or_path": str(base), "output_dir": str(interrupted)}
    write_recipe(interrupted / "recipe.yaml", **moved)
    swap_images(data)
    status, stderr = run_training(train_script, interrupted)
    assert (status, "the train split has other images; use another" in stderr) == (2, True), stderr
    shutil.rmtree(data)
    write_phantom(data, train=13, valid=6, test=6, seed=1)
    model, _ = load_base(str(base))
    model.text_decoder.cls.predictions.bias.data[0] += 1
    model.save_pretrained(base)
    status, stderr = run_training(train_script, interrupted)
    assert status == 2
    assert "train split has other data (12 images then, 13 now)" in stderr
    assert "the base model has other weights; use another --output_dir, or resume all the same with --allow" in stderr
    assert json.loads((interrupted / "environment.json").read_text())["data"]["train"]["rows"] == 12  # untouched


def test_second_start_in_a_run_in_use_is_refused_and_changes_nothing(train_script, interrupted):
    unfinished = interrupted / "checkpoint-9.part"
    unfinished.mkdir()
    before = sorted(interrupted.iterdir())
    with lock_folder(interrupted):
        status, stderr = run_training(train_script, interrupted)
    assert (status, stderr.count("\n")) == (1, 1), stderr
    assert stderr.startswith(f"medcap: error: {interrupted} is in use by process {os.getpid()} on ")
    assert sorted(interrupted.iterdir()) == before


def unpack(phantoms, data):
    """Copy the phantoms, unpack their training images, and return the image files."""
    shutil.copytree(phantoms, data)
    shutil.unpack_archive(data / "train_images.zip", data / "train_images")
    (data / "train_images.zip").unlink()
    return images_of(data)


def images_of(data):
    return sorted((data / "train_images" / "train").iterdir())


def swap_images(data):
    first, second = images_of(data)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_becomes_unreadable_is_named(train_script, trained_run, phantoms, tmp_path, monkeypatch, workers):
    data, run = tmp_path / "data", tmp_path / "run"
    image = unpack(phantoms, data)[0]
    run.mkdir()
    recipe = read_recipe(["--config", str(trained_run.recipe)]).as_dict()
    write_recipe(run / "recipe.yaml", **{**recipe, "data_dir": str(data), "feature_cache": "off"})
    make_trainer = train_script.make_trainer

    def make_and_damage(*args):
        image.write_bytes(b"not an image")
        return make_trainer(*args)

    monkeypatch.setattr(train_script, "make_trainer", make_and_damage)
    status, stderr = run_training(train_script, run, "--dataloader_num_workers", workers)
    assert status == 1
    last = stderr.splitlines()[-1]
    assert last.startswith(f"medcap: error: image_id {image.stem}: cannot read image")
    assert last.endswith("it was readable when the run began; fix it, then the same command resumes from the last "
                         "checkpoint")  # fmt: skip


def test_killed_worker_ends_the_run_with_one_line(train_script, trained_run, tmp_path, monkeypatch):
    read = ImageTransform.__call__

    def killed(self, batch):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, batch)

    monkeypatch.setattr(ImageTransform, "__call__", killed)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained_run.recipe, run / "recipe.yaml")
    status, stderr = run_training(train_script, run, "--dataloader_num_workers", 1)
    assert status == 1
    last = stderr.splitlines()[-1]
    assert re.match(r"medcap: error: data loader worker \d+ was killed; the kernel does that when memory", last)
    assert "lower dataloader_num_workers or the batch size, then the same command resumes" in last
    assert not (run / "adapter").exists()


def test_incomplete_files_of_a_killed_run_are_removed(tmp_path):
    for name in (
        "checkpoint-3.part",
        "checkpoint-3.old.part",
        "adapter.part",
        "pushes/epoch-1.run",
        "pushes/epoch-1.part",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl.part").touch()
    (tmp_path / "checkpoint-3").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "pushes"]
    assert not list((tmp_path / "pushes").iterdir())
