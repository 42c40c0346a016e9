"""A space is read exactly, or refused in one line before anything is trained.

pytest tests/tuning/test_tuning_space.py
"""

import re

import pytest
import yaml
from conftest import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from medcap.recipe import RecipeError, read_recipe
from medcap.tuning.space import own_values, read_space

SPACES = sorted((ROOT / "recipes").glob("*/space.yaml"))


@pytest.fixture
def space_of(recipe_file, tmp_path):
    """Return a function that reads a space, a mapping or the text of a file, for the smallest recipe with `keys`."""

    def read(space, **keys):
        path = tmp_path / "space.yaml"
        path.write_text(space if isinstance(space, str) else yaml.safe_dump(space), encoding="utf-8")
        return read_space(path, ["--config", recipe_file(**keys)])

    return read


def test_ranges_choices_and_scales_have_the_types_of_their_keys(space_of):
    assert space_of(
        {
            "learning_rate": {"low": "1e-5", "high": 1, "log": True},
            "lora_r": {"low": 4, "high": 64, "log": True},
            "lora_dropout": {"low": 0, "high": 0.2},
            "num_beams": [1, 4],
            "lora_alpha": [16, 32.5],
            "lora_target_modules": ["attention", "text"],
            "lora_init": [True, "gaussian"],
            "lr_scheduler_type": ["linear", "cosine"],
        }
    ) == {
        "learning_rate": FloatDistribution(1e-5, 1.0, log=True),
        "lora_r": IntDistribution(4, 64, log=True),
        "lora_dropout": FloatDistribution(0.0, 0.2),
        "num_beams": CategoricalDistribution([1, 4]),
        "lora_alpha": CategoricalDistribution([16.0, 32.5]),
        "lora_target_modules": CategoricalDistribution(["attention", "text"]),
        "lora_init": CategoricalDistribution([True, "gaussian"]),
        "lr_scheduler_type": CategoricalDistribution(["linear", "cosine"]),
    }


RANGE = {"low": 1, "high": 2}
REFUSED = {
    "unknown key": ({"learning_rat": RANGE}, "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    "removed key": ({"warmup_ratio": RANGE}, "there is no key 'warmup_ratio'; use warmup_steps"),
    "low out of range": ({"lora_r": {"low": 0, "high": 4}}, "lora_r is 0; allowed is 1 to 1024"),
    "high out of range": ({"lora_dropout": {"low": 0, "high": 1}}, "is 1.0; allowed is at least 0, below 1"),
    "choice out of range": ({"num_beams": [1, 65]}, "num_beams is 65; allowed is 1 to 64"),
    "low above high": ({"lora_r": {"low": 8, "high": 4}}, "lora_r has low 8 and high 4; low must be below high"),
    "low equals high": ({"lora_r": {"low": 8, "high": 8}}, "low must be below high"),
    "log from 0": ({"weight_decay": {"low": 0, "high": 0.1, "log": True}}, "a log scale needs a low above 0"),
    "float for an integer": ({"lora_r": {"low": 1.5, "high": 4}}, "lora_r is 1.5; expected an integer"),
    "text for a number": ({"learning_rate": {"low": "a", "high": 1}}, "learning_rate is 'a'; expected a number"),
    "unknown name": ({"lora_variant": ["lora", "dorra"]}, "lora_variant is 'dorra'; expected lora, rslora, dora"),
    "range of names": ({"lora_variant": RANGE}, "has no range, it takes lora, rslora, dora; list choices"),
    "range of text": ({"lora_target_modules": RANGE}, "lora_target_modules has no range, it takes text; list choices"),
    "log is text": ({"lora_r": {**RANGE, "log": "yes"}}, "lora_r has log 'yes'; expected true or false"),
    "unknown word": ({"lora_r": {**RANGE, "hig": 4}}, "has 'hig'; did you mean 'high'? allowed are low, high, log"),
    "no high": ({"lora_r": {"low": 1}}, "lora_r has no high; write lora_r: {low: ..., high: ...}"),
    "a value": ({"lora_r": 16}, "lora_r is 16; expected a list of choices, or {low: ..., high: ...}"),
    "one choice": ({"lora_r": [16]}, "lora_r has the choices [16]; expected at least two different ones"),
    "equal choices": ({"lora_r": [16, 16]}, "expected at least two different ones"),
    "nested choice": ({"lora_r": [16, [8]]}, "lora_r has the choice [8]; expected text, a number, true or false"),
    "seed": ({"seed": RANGE}, "seed cannot be searched: the best seed is chance"),
    "validation": ({"max_eval_samples": RANGE}, "max_eval_samples cannot be searched: it must be the same in all"),
    "metric": ({"metric_for_best_model": ["cider", "loss"]}, "must be the same in all trials; set it in the recipe"),
    "folder": ({"output_dir": ["a", "b"]}, "output_dir cannot be searched"),
    "no keys": ({}, "a space needs at least one key"),
    "not a mapping": ("- lora_r", "a space is a list of `key: value` lines, got list"),
    "not YAML": ("lora_r: [", "not a YAML file"),
    "without effect": ({"num_beams": [4, 1], "length_penalty": {"low": 0.5, "high": 2.0}},
                       "with length_penalty 0.5, num_beams 1: length_penalty has no effect without num_beams"),
}  # fmt: skip


@pytest.mark.parametrize(("space", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_space_is_refused_in_one_line_that_names_the_file(space_of, tmp_path, space, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        space_of(space)
    assert str(caught.value).startswith(f"{tmp_path / 'space.yaml'}")
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path, recipe_file):
    with pytest.raises(RecipeError, match="none.yaml: cannot read the space: No such file"):
        read_space(tmp_path / "none.yaml", ["--config", recipe_file()])


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.parent.name)
def test_every_ready_space_suits_its_recipe_and_contains_its_values(path):
    recipe = re.search(r"--config (\S+) ", path.read_text(encoding="utf-8"))[1]
    arguments = ["--config", str(ROOT / recipe)]
    assert (ROOT / recipe).parent == path.parent
    assert own_values(read_space(path, arguments), read_recipe(arguments))


def test_every_folder_of_recipes_has_a_space():
    folders = {path.parent for path in (ROOT / "recipes").glob("*/*.yaml")} - {ROOT / "recipes" / "accelerate"}
    assert {path.parent for path in SPACES} == folders
