"""Keys of a recipe reach PEFT: scaling, DoRA, ranks.

pytest tests/modeling/test_lora_options.py
"""

import math

import pytest
import torch
from adapters import LAYERS, adapted_layers, logits, randomized
from conftest import recipe_error
from peft import PeftModel

from medcap.modeling.load import load_base, weights_sha256
from medcap.modeling.lora import base_model, trainable_names
from medcap.recipe import RecipeError, read_recipe
from medcap.training.setup import make_model

QUERY = "text_decoder.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def make(tiny_base, recipe_file):
    """Return a function that makes the model of a recipe with these keys of LoRA."""

    def make(**keys):
        path = recipe_file(**{"model_name_or_path": str(tiny_base), "lora_r": 4, "lora_alpha": 8, **keys})
        return make_model(read_recipe(["--config", path]), torch.float32).model

    return make


def query(model):
    return base_model(model).get_submodule(QUERY)


SCALING = {"lora": 8 / 4, "rslora": 8 / 4**0.5, "dora": 8 / 4}


@pytest.mark.parametrize("variant", SCALING)
def test_the_variant_reaches_every_layer(make, variant):
    model = make(lora_variant=variant)
    config, layer = model.peft_config["default"], query(model)
    assert (config.use_rslora, config.use_dora) == (variant == "rslora", variant == "dora")
    assert layer.scaling["default"] == SCALING[variant]
    magnitudes = [name for name, _ in model.named_parameters() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == (len(adapted_layers(model)) if variant == "dora" else 0)


@pytest.mark.parametrize("variant", SCALING)
def test_plain_peft_loads_and_merges_every_variant(make, tiny_base, tmp_path, variant):
    model = randomized(make(lora_variant=variant))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(load_base(str(tiny_base), model_code="plain")[0], tmp_path).eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(plain.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_the_variant_is_lora_by_default(make):
    config = make().peft_config["default"]
    assert (config.use_rslora, config.use_dora) == (False, False)


def test_an_unknown_variant_is_named(recipe_file):
    path = recipe_file(lora_variant="qlora")
    assert recipe_error(["--config", path]) == f"{path}: lora_variant is 'qlora'; expected lora, rslora, dora"


@pytest.mark.parametrize("variant", SCALING)
def test_the_weights_of_the_base_are_recognized(make, loaded, variant):
    assert weights_sha256(base_model(make(lora_variant=variant))) == weights_sha256(loaded[0])


@pytest.mark.parametrize("variant", SCALING)
def test_trainable_layers_are_counted_once(make, variant):
    counts = [line.partition(": ")[2].partition(",")[0] for line in trainable_names(make(lora_variant=variant))]
    assert counts == [f"{LAYERS} layers"] * 8


def test_patterns_reach_their_layers(make):
    model = make(lora_rank_pattern={"query": 2, r"layer\.0\..*value": 3}, lora_alpha_pattern={r"self\.query": 6})
    layers = {name: module for name, module in base_model(model).named_modules() if hasattr(module, "lora_A")}
    expected = {
        name: (2, 6 / 2) if name.endswith("query") else (3, 8 / 3) if "layer.0" in name and "value" in name else (4, 2)
        for name in layers
    }
    actual = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
    assert actual == expected
    assert set(expected.values()) == {(2, 3), (3, 8 / 3), (4, 2)}


def test_plain_peft_loads_patterns(make, tiny_base, tmp_path):
    model = randomized(make(lora_rank_pattern={"query": 2}, lora_alpha_pattern={"key": 64}, lora_variant="rslora"))
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(load_base(str(tiny_base), model_code="plain")[0], tmp_path).eval()
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)


UNUSED = {
    "no layer": ({"queries": 2}, "'queries' matches the end of no layer with an adapter, or an earlier"),
    "a layer without an adapter": ({"query": 2, "qkv": 2}, "'qkv' matches the end of no layer"),
    "the beginning of a name": ({"crossattention": 2}, "'crossattention' matches the end of no layer"),
    "an earlier pattern": ({"query": 2, r"self\.query": 3}, r"'self\\.query' matches the end of no layer"),
}


@pytest.mark.parametrize("key", ["lora_rank_pattern", "lora_alpha_pattern"])
@pytest.mark.parametrize(("patterns", "message"), UNUSED.values(), ids=UNUSED)
def test_a_pattern_without_layers_is_refused(make, key, patterns, message):
    with pytest.raises(RecipeError) as caught:
        make(**{key: patterns})
    assert str(caught.value).startswith(f"{key} {message}")


WRONG = {
    "rank 0": ("lora_rank_pattern", {"query": 0}, "is 0 for 'query'; allowed is an integer, 1 to 1024"),
    "a large rank": ("lora_rank_pattern", {"query": 1025}, "is 1025 for 'query'; allowed is an integer, 1 to 1024"),
    "half a rank": ("lora_rank_pattern", {"query": 2.5}, "is 2.5 for 'query'; allowed is an integer, 1 to 1024"),
    "a boolean": ("lora_rank_pattern", {"query": True}, "is True for 'query'; allowed is an integer, 1 to 1024"),
    "text": ("lora_rank_pattern", {"query": "x"}, "is 'x' for 'query'; allowed is an integer, 1 to 1024"),
    "no text": ("lora_rank_pattern", {1: 2}, "has 1, which is not a regular expression: "),
    "brackets": ("lora_rank_pattern", {"(": 2}, "has '(', which is not a regular expression: "),
    "a number": ("lora_rank_pattern", 4, "is 4; expected a mapping"),
    "alpha 0": ("lora_alpha_pattern", {"query": 0}, "is 0 for 'query'; allowed is above 0"),
    "no number": ("lora_alpha_pattern", {"query": math.nan}, "is nan for 'query'; allowed is above 0"),
}


@pytest.mark.parametrize(("key", "value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_pattern_is_named(recipe_file, key, value, message):
    path = recipe_file(**{key: value})
    assert recipe_error(["--config", path]).startswith(f"{path}: {key} {message}")


def test_patterns_on_the_command_line_are_json(recipe_file):
    recipe = read_recipe(["--config", recipe_file(), "--lora_rank_pattern", '{"query": 2}'])
    assert recipe.lora.lora_rank_pattern == {"query": 2}
