"""scripts/train.py from recipe to adapter: the run folder, resuming, and errors.

Traps 9, 11, 12, 15, 23, 24, 27. pytest tests/training/test_run.py
"""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import write_recipe
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from medcap.data.load import load_data
from medcap.recipe import RecipeError, read_recipe
from medcap.training.run_folder import describe

STEPS = 3  # per epoch: 12 images in batches of 4


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_files_of_a_run(trained_run):
    assert names(trained_run.folder) == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "curves.png", "training.html", "samples", "adapter",
        "checkpoint-3", "checkpoint-6",
    }  # fmt: skip


@pytest.mark.parametrize("step", [STEPS, 2 * STEPS])
def test_files_of_a_checkpoint(trained_run, step):
    assert names(trained_run.folder / f"checkpoint-{step}") >= {
        "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "trainer_state.json",
    }  # fmt: skip


def test_adapter_has_no_pickled_file(trained_run):
    files = names(trained_run.folder / "adapter")
    assert files >= {
        "adapter_model.safetensors", "adapter_config.json", "generation_config.json", "recipe.yaml",
        "tokenizer.json", "processor_config.json",
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name in files} <= {"safetensors", "json", "yaml", "md", "txt"}


def test_adapter_is_that_of_the_best_epoch(trained_run):
    scores = [line["eval_length_ratio"] for line in lines(trained_run.folder / "metrics.jsonl")]
    best = trained_run.folder / f"checkpoint-{STEPS}"
    assert scores[0] < scores[1]  # and the recipe has greater_is_better: false
    saved = load_file(trained_run.folder / "adapter" / "adapter_model.safetensors")
    assert_same_weights(saved, load_file(best / "adapter_model.safetensors"))
    assert trained_run.stdout == (
        f"{trained_run.folder / 'adapter'}: the adapter of {best.name}, best length_ratio ({min(scores):.4f})\n"
    )


def test_message_names_only_a_checkpoint_that_was_loaded(train_script):
    state = SimpleNamespace(
        best_model_checkpoint="run/checkpoint-2", best_global_step=2, best_metric=0.5, global_step=4
    )
    args = SimpleNamespace(metric_for_best_model="cider")
    trainer = SimpleNamespace(state=state, args=args, best_loaded=None)
    assert train_script.describe_best(trainer) == "the adapter of the last step, 4"
    trainer.best_loaded = Path("run/checkpoint-3")
    assert train_script.describe_best(trainer) == "the adapter of checkpoint-3, best cider (0.5000)"


def assert_same_weights(actual, expected):
    """Compare bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def test_epochs_have_different_weights(trained_run):
    first, second = (
        load_file(trained_run.folder / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (STEPS, 2 * STEPS)
    )
    assert all(not torch.equal(first[name], second[name]) for name in first)


def test_adapter_config_is_plain_peft(trained_run, tiny_base):
    text = (trained_run.folder / "adapter" / "adapter_config.json").read_text()
    saved = json.loads(text)
    assert saved["task_type"] is None
    assert saved["base_model_name_or_path"] == str(tiny_base)
    assert "medcap" not in text


def test_generation_config_has_the_settings_of_the_recipe(trained_run):
    saved = json.loads((trained_run.folder / "adapter" / "generation_config.json").read_text())
    assert {key: saved[key] for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size")} == {
        "num_beams": 2, "max_new_tokens": 24, "no_repeat_ngram_size": 3,
    }  # fmt: skip


def test_metrics_have_one_line_per_epoch(trained_run):
    first, second = lines(trained_run.folder / "metrics.jsonl")
    assert [(line["epoch"], line["step"]) for line in (first, second)] == [(1.0, STEPS), (2.0, 2 * STEPS)]
    for line in (first, second):
        keys = ("loss", "eval_loss", "eval_bleu_1", "eval_bleu_4", "eval_meteor", "eval_rouge_l", "eval_cider")
        assert all(isinstance(line[key], float) for key in keys)
    assert second["loss"] < first["loss"]
    assert second["eval_loss"] < first["eval_loss"]


def test_samples_show_reference_and_prediction_of_the_same_images(trained_run, phantoms):
    valid = load_data(phantoms, splits=["valid"])["valid"]
    assert names(trained_run.folder / "samples") == {f"epoch-{n}.{kind}" for n in (1, 2) for kind in ("md", "png")}
    for epoch in (1, 2):
        text = (trained_run.folder / "samples" / f"epoch-{epoch}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# After epoch {epoch}\n")
        for image_id, caption in zip(valid["image_id"], valid["caption"], strict=True):
            assert f"**{image_id}**\n- reference: {caption}\n- prediction: " in text
        with Image.open(trained_run.folder / "samples" / f"epoch-{epoch}.png") as sheet:
            assert sheet.width > 1000


def test_saved_recipe_equals_the_recipe_of_the_run(trained_run):
    ran = read_recipe(["--config", str(trained_run.recipe)])
    for path in (trained_run.folder / "recipe.yaml", trained_run.folder / "adapter" / "recipe.yaml"):
        assert read_recipe(["--config", str(path)]).as_dict() == ran.as_dict()
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == ran.as_dict()


def test_environment_has_versions_device_seed_and_data(trained_run):
    environment = json.loads((trained_run.folder / "environment.json").read_text())
    assert environment.keys() >= {"medcap", "commit", "python", "device", "packages", "seed", "data", "processes"}
    assert environment["seed"] == 5
    assert environment["packages"].keys() >= {"torch", "transformers", "peft", "accelerate", "datasets"}
    assert {split: data["rows"] for split, data in environment["data"].items()} == {"train": 12, "valid": 6}
    assert all(data["fingerprint"] and data["kept"] == data["rows"] for data in environment["data"].values())


def test_summary_is_printed(trained_run):
    assert "12 training and 6 validation images from" in trained_run.stderr
    assert "parameters are trainable (" in trained_run.stderr
    assert "% of the training captions are longer than 96 tokens and are cut" in trained_run.stderr
    assert "epoch 1: loss " in trained_run.stderr
    assert "epoch 2: loss " in trained_run.stderr


def test_run_resumed_after_an_epoch_equals_the_uninterrupted_one(trained_run, train_script, tmp_path):
    """Weights, losses and scores, bit for bit: adapter, optimizer, schedule, order and dropout are restored."""
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder / f"checkpoint-{STEPS}", run / f"checkpoint-{STEPS}")
    shutil.copy(trained_run.folder / "metrics.jsonl", run)  # as if it had been killed in epoch 2
    with contextlib.redirect_stderr(io.StringIO()):
        train_script.main([
            "--config", str(trained_run.folder / "recipe.yaml"),
            "--output_dir", str(run), "--resume_from_checkpoint", "last",
        ])  # fmt: skip
    written = [
        (folder / f"checkpoint-{STEPS}" / "optimizer.pt").stat().st_mtime_ns for folder in (run, trained_run.folder)
    ]
    assert written[0] == written[1]  # the first epoch was not trained again
    last = f"checkpoint-{2 * STEPS}/adapter_model.safetensors"
    assert_same_weights(load_file(run / last), load_file(trained_run.folder / last))
    timed = ("runtime", "per_second", "throughput")
    timeless = [
        [{key: value for key, value in line.items() if not key.endswith(timed)} for line in metrics]
        for metrics in (lines(run / "metrics.jsonl"), lines(trained_run.folder / "metrics.jsonl"))
    ]
    assert timeless[0] == timeless[1]
    losses = [
        [line["loss"] for line in state["log_history"] if "loss" in line]
        for state in (
            json.loads((folder / f"checkpoint-{2 * STEPS}" / "trainer_state.json").read_text())
            for folder in (run, trained_run.folder)
        )
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2 * STEPS
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (run, trained_run.folder)]
    assert recipes[0] == {**recipes[1], "output_dir": str(run)}  # resume_from_checkpoint is not saved


def error_of(train_script, capsys, argv):
    """Return the status and the one line on stderr of scripts/train.py, which prints nothing on stdout."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"\d") as ended:
        train_script.main(argv)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("medcap: error: ")
    assert printed.err.count("\n") == 1
    return ended.value.code, printed.err.removeprefix("medcap: error: ").rstrip("\n")


WRONG = {
    "a typo": (["--learning_rat", "1"], "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    "a removed key": (["--warmup_ratio", "0.1"], "there is no key 'warmup_ratio'; use warmup_steps"),
    "a wrong value": (["--lora_r", "0"], "lora_r is 0; allowed is 1 to 1024"),
    "a folder in use": ([], "is a finished run: use another --output_dir"),
    "no such targets": (["--output_dir", "{new}", "--lora_target_modules", "qkv"], "matches no linear layer"),
    "not a multiple of the patch": (["--output_dir", "{new}", "--image_size", "50"], "image_size is 50; it must be"),
}


@pytest.mark.parametrize(("argv", "line"), WRONG.values(), ids=WRONG)
def test_wrong_recipe_exits_with_status_2_and_one_line(trained_run, train_script, capsys, tmp_path, argv, line):
    argv = [argument.format(new=tmp_path / "run") for argument in argv]
    status, error = error_of(train_script, capsys, ["--config", str(trained_run.recipe), *argv])
    assert (status, line in error) == (2, True), error
    assert not (tmp_path / "run").exists()


def test_missing_data_exits_with_status_1_and_one_line(train_script, capsys, tmp_path, tiny_base):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", data_dir=str(tmp_path / "no data"), model_name_or_path=str(tiny_base),
        output_dir=str(tmp_path / "run"), use_cpu=True,
    )  # fmt: skip
    status, error = error_of(train_script, capsys, ["--config", str(recipe)])
    assert status == 1
    assert "no data" in error
    assert not (tmp_path / "run").exists()


def test_debug_raises_the_error(train_script, tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        train_script.main(["--config", str(tmp_path / "none.yaml"), "--debug"])


def test_data_without_image_checks_is_described():
    rows = Dataset.from_dict({"image_id": ["a", "b"], "caption": ["x", "y"]})
    described = describe({"train": rows})["train"]
    assert described.keys() == {"rows", "fingerprint"}
    assert described["rows"] == 2


def trained_with(train_script, run, folder, **keys):
    """Train the recipe of a run with other keys; return the lines of metrics.jsonl and stderr."""
    argv = [argument for key, value in keys.items() for argument in (f"--{key}", str(value))]
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
        train_script.main(["--config", str(run.recipe), "--output_dir", str(folder), *argv])
    return lines(folder / "metrics.jsonl"), stderr.getvalue()


def test_without_the_best_epoch_the_adapter_is_that_of_the_last(trained_run, train_script, tmp_path):
    """And without clipping, as in the recipes of the original project."""
    settings = {"load_best_model_at_end": "false", "max_grad_norm": 0}
    metrics, _ = trained_with(train_script, trained_run, tmp_path / "run", **settings)
    assert metrics[0]["eval_length_ratio"] < metrics[1]["eval_length_ratio"]  # the first epoch is the best
    last, saved = (tmp_path / "run" / name / "adapter_model.safetensors" for name in ("checkpoint-6", "adapter"))
    assert_same_weights(load_file(saved), load_file(last))


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_cached_features_do_not_change_the_losses(trained_run, train_script, tmp_path, precision, bound):
    """To 1e-5 in fp32; in bf16, the rounding depends on which images are encoded together."""
    cache = tmp_path / "features"
    cached, stderr = trained_with(train_script, trained_run, tmp_path / "a", precision=precision, feature_cache=cache)
    plain, _ = trained_with(train_script, trained_run, tmp_path / "b", precision=precision, feature_cache="off")
    assert "features of the vision encoder are cached in" in stderr
    assert len(list(cache.rglob("*.idx"))) == 1
    for key in ("loss", "eval_loss"):
        assert [line[key] for line in cached] == pytest.approx([line[key] for line in plain], abs=bound)
    assert cached[0]["loss"] != cached[1]["loss"]
    if precision == "fp32":
        assert [line["eval_cider"] for line in cached] == [line["eval_cider"] for line in plain]


def test_second_run_encodes_no_image(trained_run, train_script, tmp_path, monkeypatch):
    cache = tmp_path / "features"
    first, _ = trained_with(train_script, trained_run, tmp_path / "a", feature_cache=cache, precision="fp32")
    monkeypatch.setattr("medcap.modeling.blip_fast.BlipVisionModel.forward", None)  # a call would fail
    second, _ = trained_with(train_script, trained_run, tmp_path / "b", feature_cache=cache, precision="fp32")
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], abs=1e-5)
