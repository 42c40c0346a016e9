"""`medcap tune` trains the trials of a search, and leaves its results.

pytest tests/tuning/test_tune.py
"""

import contextlib
import csv
import io
import json
import shutil
from types import SimpleNamespace

import optuna
import pytest
import yaml
from conftest import write_recipe

import medcap.commands.tune as command
from medcap.cli import main
from medcap.extras import install_command
from medcap.modeling.feature_cache import FeatureEncoder
from medcap.training.callbacks import MetricsLog
from medcap.tuning.trial import EpochReport

SPACE = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "num_beams": [1, 2]}
FILES = {"best.yaml", "history.png", "report.html", "study.db", "study.lock", "trials", "trials.csv"}


def tune(folder, *arguments, trials=3, out="out"):
    """Run the command; return its status, stdout and stderr."""
    paths = ["--config", folder / "recipe.yaml", "--space", folder / "space.yaml", "--out", folder / out]
    status, stdout, stderr = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(["tune", *map(str, [*paths, "--trials", trials, *arguments])])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, stdout.getvalue(), stderr.getvalue()


def prepare(folder, trained_run, **keys):
    """Write a recipe of two epochs, and a space."""
    recipe = yaml.safe_load(trained_run.recipe.read_text())
    recipe |= {"feature_cache": str(folder / "features"), "metric_for_best_model": "loss", "lora_dropout": 0.0}
    write_recipe(folder / "recipe.yaml", **recipe | {"greater_is_better": False} | keys)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def search(trained_run, tmp_path_factory):
    """A search of three trials, whose second one was interrupted after an epoch; and the images encoded by trial."""
    folder = prepare(tmp_path_factory.mktemp("tune"), trained_run)
    encoded, encode, log = [], FeatureEncoder._encode, MetricsLog.on_evaluate

    def counting(self, pixels):
        encoded[-1] += len(pixels)
        return encode(self, pixels)

    report = EpochReport.__init__

    def starting(self, *args):
        encoded.append(0)
        report(self, *args)

    def interrupted(self, args, state, *rest, **kwargs):
        log(self, args, state, *rest, **kwargs)
        if args.output_dir.endswith("/1") and state.epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureEncoder, "_encode", counting)
        patch.setattr(EpochReport, "__init__", starting)
        with patch.context() as inner:
            inner.setattr(MetricsLog, "on_evaluate", interrupted)
            assert tune(folder)[0] == 130
        left = sorted(path.name for path in (folder / "out" / "trials" / "1").glob("checkpoint-*"))
        status, stdout, stderr = tune(folder)
    assert status == 0, stderr
    return SimpleNamespace(folder=folder, out=folder / "out", encoded=encoded, left=left, stdout=stdout, stderr=stderr)


def rows(out):
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_interrupted_trial_resumes_from_its_checkpoint_under_its_number(search):
    assert search.left == ["checkpoint-3"]
    assert [row["trial"] for row in rows(search.out)] == ["0", "1", "2"]
    assert [row["epochs"] for row in rows(search.out)] == ["2", "2", "2"]


def test_undisturbed_search_has_the_same_table_to_the_byte(search, tmp_path):
    for name in ("recipe.yaml", "space.yaml"):
        shutil.copy(search.folder / name, tmp_path)
    status, _, stderr = tune(tmp_path)
    assert status == 0, stderr
    assert (tmp_path / "out" / "trials.csv").read_bytes() == (search.out / "trials.csv").read_bytes()


def test_trials_share_the_features_of_images(search):
    first, *others = search.encoded  # the second trial began twice
    assert first >= 18  # 12 training and 6 validation images
    assert others == [0, 0, 0]


def test_finished_trials_keep_no_weights(search):
    assert {path.name for path in search.out.iterdir()} == FILES
    for number in range(3):
        kept = {path.name for path in (search.out / "trials" / str(number)).iterdir()}
        assert kept == {"recipe.yaml", "environment.json", "metrics.jsonl"}


def test_best_recipe_trains_to_the_value_of_the_best_trial(search, train_script):
    best = min(rows(search.out), key=lambda row: float(row["loss"]))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_script.main(["--config", str(search.out / "best.yaml")])
    lines = (search.out / "best" / "metrics.jsonl").read_text().splitlines()
    assert min(json.loads(line)["eval_loss"] for line in lines) == float(best["loss"])
    assert (search.out / "best" / "adapter").is_dir()
    shutil.rmtree(search.out / "best")


def test_first_trial_is_the_recipe_and_stdout_names_the_best(search):
    assert float(rows(search.out)[0]["learning_rate"]) == 0.02
    best = min(rows(search.out), key=lambda row: float(row["loss"]))
    own = float(rows(search.out)[0]["loss"])
    first = search.stdout.splitlines()[0]
    assert first == f"best of 3 trials: trial {best['trial']}, loss {float(best['loss']):.4f} (the recipe: {own:.4f})"
    assert f"Recipe: {search.out / 'best.yaml'}" in search.stdout


def test_finished_search_trains_nothing_and_writes_the_same_results(search):
    table = (search.out / "trials.csv").read_bytes()
    status, stdout, stderr = tune(search.folder)
    assert (status, stdout) == (0, search.stdout)
    assert "training" not in stderr
    assert (search.out / "trials.csv").read_bytes() == table


def test_failed_trial_is_recorded_and_the_search_goes_to_the_next(search, trained_run, tmp_path, monkeypatch):
    prepare(tmp_path, trained_run)
    shutil.copytree(search.out, tmp_path / "out")
    recipe = yaml.safe_load((search.folder / "recipe.yaml").read_text())
    write_recipe(tmp_path / "recipe.yaml", **recipe)

    def diverged(*args):
        raise FloatingPointError("the loss became inf")

    monkeypatch.setattr("medcap.tuning.trial._train", diverged)
    status, stdout, _ = tune(tmp_path, trials=4)
    row = rows(tmp_path / "out")[3]
    assert (status, row["state"], row["note"], row["loss"]) == (0, "failed", "the loss became inf", "")
    assert stdout.startswith("best of 4 trials")


def test_error_of_the_first_trial_ends_the_search(trained_run, tmp_path):
    prepare(tmp_path, trained_run, data_dir=str(tmp_path / "none"))
    status, _, stderr = tune(tmp_path)
    assert status == 1
    assert stderr.splitlines()[-1].startswith(f"medcap: error: no data at '{tmp_path / 'none'}'")


def test_trial_with_the_values_of_another_has_its_result_without_training(search, tmp_path, monkeypatch):
    for name in ("recipe.yaml", "space.yaml"):
        shutil.copy(search.folder / name, tmp_path)
    shutil.copytree(search.out, tmp_path / "out")
    first = rows(tmp_path / "out")[0]
    values = {"learning_rate": float(first["learning_rate"]), "num_beams": int(first["num_beams"])}
    monkeypatch.setattr("medcap.tuning.study.Search._suggest", lambda search, trials: values)
    monkeypatch.setattr("medcap.tuning.trial._train", lambda *args: pytest.fail("it was trained"))
    assert tune(tmp_path, trials=4)[0] == 0
    last = rows(tmp_path / "out")[3]
    assert (last["loss"], last["epochs"], last["note"]) == (first["loss"], "2", "same as trial 0")


def test_trial_worse_than_the_median_is_pruned_after_its_epoch(search, tmp_path, monkeypatch):
    for name in ("recipe.yaml", "space.yaml"):
        shutil.copy(search.folder / name, tmp_path)
    shutil.copytree(search.out, tmp_path / "out")
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: True)
    assert tune(tmp_path, trials=4)[0] == 0
    last = rows(tmp_path / "out")[3]
    assert (last["state"], last["epochs"]) == ("pruned", "1")


REFUSED = {
    "no trials": (["--trials", "0"], "'0' is not a number of trials; give 1 or more"),
    "unknown option": (["--lora_rr", "1"], "unknown key 'lora_rr'"),
    "push": (["--push_to_hub", "--hub_model_id", "a/b"], "push_to_hub cannot be used by a search"),
    "no evaluation": (
        ["--eval_strategy", "no", "--no_load_best_model_at_end"],
        "a search compares epochs: eval_strategy is 'no', must be 'epoch'",
    ),
    "other recipe": (["--weight_decay", "0.5"], "search with other settings: weight_decay was None and is 0.5"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_command_is_one_line_and_status_2(search, arguments, message):
    status, _, stderr = tune(search.folder, *arguments)
    assert status == 2
    assert message in stderr.splitlines()[-1]


def test_unknown_option_of_another_command_is_refused():
    with pytest.raises(SystemExit, match="^2$"):
        main(["cache", "list", "--flod", "x"])


def test_missing_optuna_is_a_one_line_error(search, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert tune(search.folder)[2] == f"medcap: error: optuna is not installed: {install_command('tune')}\n"
