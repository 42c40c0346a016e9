"""`medcap average` writes an adapter that captions, evaluates and publishes like others; wrong commands are one line.

pytest tests/publish/test_average_command.py
"""

import json
import shutil

import pytest
from peft import PeftModel

from medcap.cli import main
from medcap.evaluation.result import RecipeId
from medcap.inference import load_captioner
from medcap.modeling.load import load_base
from medcap.publish.release import build_release

FILES = {"adapter_model.safetensors", "adapter_config.json", "generation_config.json", "recipe.yaml", "average.json"}


def average(*arguments):
    """Run the command and return its status."""
    try:
        main(["average", *map(str, arguments)])
    except SystemExit as error:
        return error.code
    return 0


@pytest.fixture(scope="module")
def averaged(trained_run, tmp_path_factory):
    """The average of both epochs, as the adapter of a folder that `publish` takes; read-only."""
    folder = tmp_path_factory.mktemp("averaged")
    assert average(trained_run.folder, "--best", 2, "--out", folder / "adapter") == 0
    return folder


def test_the_average_of_the_best_epochs_is_loaded_like_their_adapter(averaged, trained_run, tiny_base):
    best, folder = trained_run.folder / "adapter", averaged / "adapter"
    assert {path.name for path in folder.iterdir()} >= FILES
    for name in ("generation_config.json", "recipe.yaml", "tokenizer.json"):
        assert (folder / name).read_bytes() == (best / name).read_bytes()
    captioner, other = load_captioner(str(folder)), load_captioner(str(best))
    assert captioner.generation_config.to_dict() == other.generation_config.to_dict()
    assert captioner.image_size == 48
    assert _ranks(captioner.model) == {16}
    PeftModel.from_pretrained(load_base(str(tiny_base), image_size=48, model_code="plain")[0], folder)


def _ranks(model):
    return {len(weight) for name, weight in model.named_parameters() if "lora_A" in name}


def test_an_average_is_another_system_for_a_comparison(averaged, trained_run):
    recipes = [load_captioner(str(folder)).recipe for folder in (averaged / "adapter", trained_run.folder / "adapter")]
    assert RecipeId.of(recipes[0]).hash != RecipeId.of(recipes[1]).hash


def test_best_chooses_epochs_by_the_metric_of_the_recipe(trained_run, tmp_path, capsys):
    lines = [json.loads(line) for line in (trained_run.folder / "metrics.jsonl").read_text().splitlines()]
    by_metric = sorted(lines, key=lambda line: line["eval_length_ratio"])  # greater_is_better: false
    average(trained_run.folder, "--best", 2, "--out", tmp_path / "out")
    steps = [f"run/checkpoint-{line['step']}" for line in by_metric]
    origin = json.loads((tmp_path / "out" / "average.json").read_text())["adapters"]
    assert [part["adapter"] for part in origin] == steps
    assert [part["weight"] for part in origin] == [0.5, 0.5]
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: the average of ")


def test_weights_are_divided_by_their_sum(trained_run, tmp_path):
    steps = sorted(trained_run.folder.glob("checkpoint-*"))
    assert average(*steps, "--weights", 3, 1, "--out", tmp_path / "out") == 0
    origin = json.loads((tmp_path / "out" / "average.json").read_text())["adapters"]
    assert [part["weight"] for part in origin] == [0.75, 0.25]


def test_a_release_of_an_average_names_its_adapters(averaged, tmp_path):
    release = build_release(averaged, tmp_path / "release")
    card = (release / "README.md").read_text()
    assert "the average of 2 adapters: `run/checkpoint-3` (weight 0.5), `run/checkpoint-6` (weight 0.5)." in card
    assert (release / "average.json").is_file()


WRONG = {
    "one adapter": (["RUN/adapter"], 2, "an average needs 2 adapters or more"),
    "weights": (["RUN/adapter", "RUN/adapter", "--weights", "1"], 2, "--weights has 1 numbers for 2 adapters"),
    "negative": (["RUN/adapter", "RUN/adapter", "--weights", "1", "0"], 2, "--weights has 0; allowed is above 0"),
    "no run": (["RUN/adapter", "--best", "2"], 2, "--best needs the folder of a finished run"),
    "one epoch": (["RUN", "--best", "1"], 2, "--best is 1"),
    "more epochs": (["RUN", "--best", "3"], 1, "has 2 checkpoints with eval_length_ratio, --best needs 3"),
    "best and weights": (["RUN", "--best", "2", "--weights", "1"], 2, "--best takes the folder of one run"),
    "a run without best": (["RUN", "RUN"], 1, "did you mean"),
    "a base": (["BASE", "RUN/adapter"], 1, "is no adapter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_one_line(trained_run, tiny_base, tmp_path, capsys, case):
    arguments, status, message = WRONG[case]
    named = [text.replace("RUN", str(trained_run.folder)).replace("BASE", str(tiny_base)) for text in arguments]
    assert average(*named, "--out", tmp_path / "out") == status
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(trained_run, tmp_path, capsys):
    run = shutil.copytree(trained_run.folder, tmp_path / "run")
    (run / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"")
    assert average(run, "--best", 2, "--out", tmp_path / "out") == 1
    assert "checkpoint-3 is damaged (adapter_model.safetensors has 0 bytes" in capsys.readouterr().err


def test_other_prompts_are_refused(trained_run, tmp_path, capsys):
    other = shutil.copytree(trained_run.folder / "adapter", tmp_path / "other")
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("prompt: ''", "prompt: showing"))
    assert average(trained_run.folder / "adapter", other, "--out", tmp_path / "out") == 1
    assert "was trained with prompt 'showing'" in capsys.readouterr().err
