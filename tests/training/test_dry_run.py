"""A dry run finds errors of the full run, prints its plan, and leaves no files.

pytest tests/training/test_dry_run.py
"""

import contextlib
import io
import itertools
import json
import shutil
import zipfile
from types import SimpleNamespace

import pytest
import yaml
from conftest import write_recipe
from torch.utils.data import DataLoader

from medcap.disk import folder_bytes, nearest_folder
from medcap.recipe import CaptionTrainingArguments, RecipeError, read_recipe
from medcap.training import plan, setup
from medcap.training.dry_run import DECODED, check_reporters, dry_run_rows, evenly_spaced
from medcap.training.plan import DiskSpace, Schedule, Timing, check_steps, duration
from medcap.training.trainer import CaptionTrainer


def dry_run_argv(run, folder, *more):
    return ["--config", str(run.recipe), "--output_dir", str(folder / "new" / "run"), "--dry_run", *more]


@pytest.fixture(scope="module")
def planned(trained_run, train_script, tmp_path_factory):
    """The output of a dry run of the recipe of `trained_run`, and the folder above its output_dir."""
    folder = tmp_path_factory.mktemp("dry")
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()):
        train_script.main(dry_run_argv(trained_run, folder, "--feature_cache", str(folder / "features")))
    return stdout.getvalue(), folder


def test_no_files_are_left(planned):
    assert list(planned[1].iterdir()) == []


def test_plan_agrees_with_the_run(planned, trained_run):
    state = json.loads((trained_run.folder / "checkpoint-6" / "trainer_state.json").read_text())
    assert (state["max_steps"], state["num_train_epochs"]) == (6, 2)
    assert "steps: 6 of 4 captions, 3 per epoch, 2 epochs; warm-up over 0\n" in planned[0]
    assert "12 training and 6 validation images from" in planned[0]
    assert "; 18 were decoded" in planned[0]
    summary = next(line for line in trained_run.stderr.splitlines() if "parameters are trainable" in line)
    assert f"parameters: {summary}; computed in float32\n" in planned[0]
    assert "    text_decoder.bert.encoder.layer.*.crossattention.self.query: 2 layers, " in planned[0]


def test_plan_holds_memory_disk_time_and_a_caption(planned):
    lines = dict(line.split(": ", 1) for line in planned[0].splitlines())
    assert " GB measured, " in lines["memory"]
    assert "2 checkpoints" in lines["disk"]
    assert "18 images" in lines["features"]
    assert lines["time"].startswith("about ")
    assert "measurements here" in lines["time"]
    assert lines["caption"].startswith("'")


def test_planned_disk_space_agrees_with_the_run(planned, trained_run):
    used = sum(folder_bytes(trained_run.folder / f"checkpoint-{step}") for step in (3, 6))
    text = next(part for part in planned[0].split("(") if part.startswith("2 checkpoints"))
    planned_bytes = float(text.split(" checkpoints ")[1].split(" MB")[0]) * 1e6
    assert planned_bytes == pytest.approx(used, rel=0.1)


def test_existing_output_folder_is_unchanged(trained_run, train_script, tmp_path, capsys):
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "new" / "run" / "notes.txt").write_text("mine")
    nothing_saved = ["--eval_strategy", "no", "--save_strategy", "no", "--no_load_best_model_at_end"]
    train_script.main(dry_run_argv(trained_run, tmp_path, "--feature_cache", "off", *nothing_saved))
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "run", "notes.txt"]
    assert "features: not cached" in capsys.readouterr().out


def error_of(train_script, capsys, arguments):
    """Return the status and the last line of stderr; stdout is empty."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train_script.main(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    return ended.value.code, printed.err.splitlines()[-1]


def test_failed_dry_run_leaves_no_files(trained_run, train_script, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("no step")

    monkeypatch.setattr(CaptionTrainer, "compute_loss", fail)
    assert error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path)) == (1, "medcap: error: no step")
    assert list(tmp_path.iterdir()) == []


def test_small_disk_is_found(trained_run, train_script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000, total=1, used=1))
    status, line = error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path, "--feature_cache", "off"))
    assert status == 1
    assert "the disk is too small: the run needs " in line
    assert "0.1 MB free there; free some space, or lower save_total_limit" in line


def test_missing_reporter_is_found(trained_run, train_script, tmp_path, capsys):
    status, line = error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path, "--report_to", "comet_ml"))
    assert status == 2
    assert "comet" in line


def test_file_at_the_output_path_is_found(trained_run, train_script, tmp_path, capsys):
    (tmp_path / "new").write_text("a file")
    status, line = error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path))
    assert (status, f"{tmp_path / 'new'} is a file" in line) == (1, True)


def test_too_many_broken_images_are_found(trained_run, train_script, phantoms, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    archive = data / "train_images.zip"
    with zipfile.ZipFile(archive) as images:
        content = {name: images.read(name) for name in images.namelist()}
    with zipfile.ZipFile(archive, "w") as images:
        for number, (name, image) in enumerate(content.items()):
            images.writestr(name, image[:100] if number > 9 else image)
    status, line = error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path, "--data_dir", str(data)))
    assert status == 1
    assert "cannot be decoded" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


LENGTHS = [5, 9, 2, 7, 3, 8, 4, 6]
ROWS = {
    "one": (LENGTHS, 1, True, [1, 0, 1, 0]),  # of nine tokens, and of five
    "grouped": (LENGTHS, 2, True, [1, 5, 0, 7] * 2),  # 5 and 6 tokens are the middle
    "mixed": (LENGTHS, 3, False, [1, 5, 3, 2, 7, 1] * 2),  # from the shortest to the longest
    "fewer than a batch": ([4, 6], 3, True, [1, 0, 1, 0, 1, 0] * 2),
}


@pytest.mark.parametrize(("lengths", "batch", "grouped", "rows"), ROWS.values(), ids=ROWS)
def test_dry_run_trains_on_the_longest_and_typical_captions(lengths, batch, grouped, rows):
    assert dry_run_rows(lengths, batch, grouped) == rows


def test_decoded_images_span_the_split():
    assert evenly_spaced(3) == [0, 1, 2]
    rows = evenly_spaced(10_000)
    assert (len(rows), rows[0], rows[-1]) == (DECODED, 0, 9_999)
    assert max(b - a for a, b in itertools.pairwise(rows)) == 40


SCHEDULES = {
    "even": (12, {}),
    "a last batch that is not full": (13, {"num_train_epochs": 3}),
    "accumulation that does not divide": (30, {"gradient_accumulation_steps": 3}),
    "half an epoch": (40, {"num_train_epochs": 0.5, "warmup_steps": 0.3}),
    "steps": (12, {"max_steps": 7, "warmup_steps": 4}),
    "fewer than a batch": (2, {"gradient_accumulation_steps": 4}),
    "the last batch dropped": (15, {"dataloader_drop_last": True}),
}


@pytest.mark.parametrize(("images", "settings"), SCHEDULES.values(), ids=SCHEDULES)
def test_steps_agree_with_the_trainer(images, settings, tmp_path):
    args = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4, **settings)
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda _: 1, get_sp_size=lambda: 1, num_examples=len, args=args
    )
    loader = DataLoader(range(images), batch_size=4, drop_last=args.dataloader_drop_last)
    counted = CaptionTrainer.set_initial_training_values(trainer, args, loader)
    schedule = Schedule.of(args, images)
    assert (schedule.steps_per_epoch, schedule.steps) == (counted[1], counted[6])
    assert schedule.warmup_steps == args.get_warmup_steps(schedule.steps)


def test_settings_that_suit_the_number_of_images_are_read(tmp_path):
    settings = {"dataloader_drop_last": True, "warmup_steps": 3, "eval_delay": 3, "num_train_epochs": 3}
    check_steps(CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings), images=8)


UNUSABLE = {
    "no batch": (
        3,
        {"dataloader_drop_last": True},
        "dataloader_drop_last leaves no batch: 3 training images are fewer ",
    ),
    "warm-up beyond all steps": (12, {"warmup_steps": 10}, "warmup_steps is 10, but the run has 9 steps"),
    "decay beyond all steps": (
        12,
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        "warmup_steps and lr_scheduler_kwargs take 10 steps, but the run has 9",
    ),
    "evaluation after the end": (12, {"eval_delay": 4}, "eval_delay is 4 epochs, but the run has 3"),
    "evaluation after the last step": (
        12,
        {"eval_delay": 10, "eval_strategy": "steps", "save_strategy": "steps"},
        "eval_delay is 10 steps, but the run has 9",
    ),
}


@pytest.mark.parametrize(("images", "settings", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_settings_that_do_not_suit_the_number_of_images_are_refused(images, settings, message, tmp_path):
    args = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4, **settings)
    with pytest.raises(RecipeError, match=message):
        check_steps(args, images)


def test_images_are_counted_before_they_are_decoded(recipe_file, phantoms, monkeypatch):
    monkeypatch.setattr(setup, "check_images", None)
    path = recipe_file(data_dir=str(phantoms), dataloader_drop_last=True, per_device_train_batch_size=100)
    with pytest.raises(RecipeError, match="dataloader_drop_last leaves no batch"):
        setup.load_checked_splits(read_recipe(["--config", path]))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_reporter_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: False)
    with pytest.raises(RecipeError, match=rf"report_to is {name}: .* {name}.*; pip install .*\[track\]"):
        check_reporters(CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[name]))


TIMES = {
    "each epoch": ({}, 3),
    "never": ({"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}, 0),
    "each second step": ({"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}, 4),
    "each third of all": ({"eval_strategy": "steps", "eval_steps": 0.33, "save_strategy": "steps", "save_steps": 0.33},
                          3),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "times"), TIMES.values(), ids=TIMES)
def test_evaluations_and_checkpoints_are_counted(settings, times, tmp_path):
    args = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    schedule = Schedule.of(args, 24)  # 3 steps of 8 in each of 3 epochs
    assert (schedule.steps, schedule.evaluations, schedule.saves) == (9, times, times)


def test_time_sums_first_and_later_epochs_and_evaluations():
    schedule = Schedule(steps_per_epoch=10, steps=25, epochs=2.5, evaluations=3, saves=3, warmup_steps=0, batch=4)
    measured = Timing(step=2.0, later_step=1.0, evaluation=5.0, captioned=8)
    assert measured.training(schedule, valid=16) == 10 * 2 + 15 * 1 + 3 * 2 * 5


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration_text(seconds, text):
    assert duration(seconds) == text


def test_disk_space_is_compared_with_the_disk_of_a_new_folder(tmp_path):
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
    DiskSpace(tmp_path / "a", {"x": 10, "y": 20}).check()
    with pytest.raises(OSError, match="the disk is too small"):
        DiskSpace(tmp_path / "a", {"x": 10**18}).check()


def test_dry_run_recipe_changes_no_setting_of_a_step(trained_run, train_script, tmp_path, monkeypatch):
    """Batch size, accumulation, precision, learning rate and dropout are those of the full run."""
    recipes = []

    def stop(recipe, *args, **kwargs):
        recipes.append(recipe)
        raise OSError("stopped")

    monkeypatch.setattr(train_script, "fit", stop)
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(OSError, match="stopped"):
        train_script.main([*dry_run_argv(trained_run, tmp_path), "--debug"])
    full = read_recipe(dry_run_argv(trained_run, tmp_path)).training.to_dict()
    changed = {key for key, value in recipes[0].training.to_dict().items() if value != full[key]}
    assert changed == {"output_dir", "num_train_epochs", "disable_tqdm", "train_sampling_strategy"}
    assert yaml.safe_load(trained_run.recipe.read_text())["num_train_epochs"] == 2


def test_dry_run_checks_access_to_the_hub(trained_run, train_script, tmp_path, capsys, hub):
    status, line = error_of(train_script, capsys, dry_run_argv(trained_run, tmp_path, "--push_to_hub"))
    assert status == 1
    assert "there is no token" in line


def test_dry_run_is_a_key_but_not_saved(tmp_path):
    path = write_recipe(tmp_path / "r.yaml", data_dir="d", model_name_or_path="m", output_dir="o", use_cpu=True)
    assert not read_recipe(["--config", str(path)]).training.dry_run
    recipe = read_recipe(["--config", str(path), "--dry_run"])
    assert recipe.training.dry_run
    assert "dry_run" not in recipe.as_dict()
