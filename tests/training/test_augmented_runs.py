"""A run with augmentation is reproducible, resumes exactly, and shows its views.

pytest tests/training/test_augmented_runs.py
"""

import json
import shutil

import pytest
import yaml
from conftest import write_recipe

from medcap.data.augmentation import Augmentation
from medcap.recipe import read_recipe
from medcap.training.plan import Schedule, Timing, cached_images, reuses_features

SAVED = "adapter/adapter_model.safetensors"
ONLY_TRAINED = {
    "augmentation": "strong", "augmentation_views": 2, "num_train_epochs": 3, "logging_steps": 1,
    "eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "steps", "save_steps": 4,
    "feature_cache": "off", "metric_for_best_model": "cider", "greater_is_better": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def train(trained_run, train_script, tmp_path_factory):
    """Return a function: train the recipe of `trained_run`, augmented, in a new or given folder; return that."""
    recipe = yaml.safe_load(trained_run.recipe.read_text())

    def trained(run=None, *argv, **keys):
        run = run or tmp_path_factory.mktemp("augmented") / "run"
        path = write_recipe(run.parent / "recipe.yaml", **{**recipe, **ONLY_TRAINED, **keys, "output_dir": str(run)})
        train_script.main(["--config", str(path), *argv])
        return run

    return trained


@pytest.fixture(scope="module")
def uninterrupted(train):
    return train()


def losses(run):
    state = json.loads((run / "checkpoint-9" / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_run_resumed_within_an_epoch_equals_the_uninterrupted_one(train, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "adapter")
    for step in (8, 9):
        shutil.rmtree(run / f"checkpoint-{step}")
    train(run)
    assert (run / SAVED).read_bytes() == (uninterrupted / SAVED).read_bytes()


def test_data_loader_workers_read_the_views_of_the_epoch(train, uninterrupted):
    run = train(dataloader_num_workers=2)
    assert (run / SAVED).read_bytes() == (uninterrupted / SAVED).read_bytes()


def test_cached_views_give_the_losses_of_uncached_ones(train, uninterrupted, tmp_path):
    run = train(feature_cache=str(tmp_path / "features"))
    assert losses(run) == pytest.approx(losses(uninterrupted), rel=1e-4)


def test_views_change_what_is_learned(train, uninterrupted, monkeypatch):
    """The comparisons above would pass without augmentation, and with one view for all epochs."""
    monkeypatch.setattr(Augmentation, "epoch", property(lambda _: 0, lambda *_: None))
    constant, expected = losses(train()), losses(uninterrupted)
    assert constant[:3] == expected[:3]
    assert constant[3:] != pytest.approx(expected[3:], rel=1e-3)


def test_dry_run_writes_a_contact_sheet_and_nothing_else(train, tmp_path, capsys):
    run = train(tmp_path / "run", "--dry_run")
    assert sorted(path.name for path in run.rglob("*")) == ["augmentation.png"]
    assert f"augmentation: strong, 2 views of an image; examples are in {run}/augmentation.png" in (
        capsys.readouterr().out
    )


def test_run_folder_has_the_contact_sheet(uninterrupted, trained_run):
    assert (uninterrupted / "augmentation.png").read_bytes().startswith(b"\x89PNG")
    assert not (trained_run.folder / "augmentation.png").exists()


def test_every_view_is_cached_if_epochs_repeat_it(recipe_file):
    def recipe(**keys):
        return read_recipe(["--config", recipe_file(num_train_epochs=5, **keys)])

    data = {"train": range(100), "valid": range(10)}
    plain, four = recipe(), recipe(augmentation="light")
    assert [cached_images(each, data) for each in (plain, four)] == [110, 410]
    assert reuses_features(plain)
    assert reuses_features(four)
    assert not reuses_features(recipe(augmentation="light", augmentation_views=5))
    assert not reuses_features(recipe(augmentation="light", augmentation_views=0))


def test_epochs_with_new_views_take_the_time_of_new_images():
    schedule = Schedule(steps_per_epoch=10, steps=50, epochs=5, evaluations=0, saves=0, warmup_steps=0, batch=1)
    assert Timing(2, 1, 0, 1, views=4).training(schedule, 1) == 90
