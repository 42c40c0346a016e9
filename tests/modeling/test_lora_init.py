"""Every initialization reaches PEFT, changes no caption before training, and is saved for the plain base.

pytest tests/modeling/test_lora_init.py
"""

import copy

import pytest
import torch
from adapters import logits, randomized
from peft import PeftModel

from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora, base_model
from medcap.modeling.lora_init import save_weights
from medcap.recipe import RecipeError, read_recipe
from medcap.training.setup import make_model

INITS = [True, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4", "mica"]
CHANGES_BASE = ["olora", "pissa", "pissa_niter_4"]


@pytest.fixture
def adapt(tiny_base, recipe_file):
    """Return a function that makes the model of a recipe with these keys."""

    def adapt(dtype=torch.float32, **keys):
        path = recipe_file(**{"model_name_or_path": str(tiny_base), "lora_r": 4, "lora_alpha": 6, **keys})
        torch.manual_seed(0)
        return make_model(read_recipe(["--config", path]), dtype)

    return adapt


@pytest.mark.parametrize("init", INITS)
def test_the_value_reaches_peft_and_captions_stay_those_of_the_base(adapt, loaded, init):
    adapted = adapt(lora_init=init, lora_target_modules="text-and-vision-attention")
    assert adapted.model.peft_config["default"].init_lora_weights == init
    torch.testing.assert_close(logits(adapted.model.eval()), logits(loaded[0]), atol=1e-4, rtol=1e-4)
    weight = "text_decoder.bert.encoder.layer.0.attention.self.query"
    before, after = loaded[0].get_submodule(weight).weight, base_model(adapted.model).get_submodule(weight).weight
    assert torch.equal(before, after) == (init not in CHANGES_BASE)


def test_the_default_is_that_of_peft(adapt):
    assert adapt().model.peft_config["default"].init_lora_weights is True


OTHERS = {
    "alone": {},
    "rslora, patterns": {
        "lora_variant": "rslora", "lora_rank_pattern": {"query": 2}, "lora_alpha_pattern": {"value": 16}
    },
    "dora": {"lora_variant": "dora"},
    "trained module": {"lora_modules_to_save": ["word_embeddings"]},
}  # fmt: skip


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("init", INITS)
def test_plain_peft_loads_the_trained_adapter_on_the_plain_base(adapt, tiny_base, tmp_path, init, others):
    if init == "mica" and others.get("lora_variant") == "dora":
        return
    adapted = adapt(lora_init=init, lora_target_modules="text-and-vision-attention", **others)
    model = randomized(adapted.model)
    expected = logits(model)
    save_weights(model, tmp_path, adapted.initial)
    plain = PeftModel.from_pretrained(load_base(str(tiny_base), model_code="plain")[0], tmp_path).eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=1e-4)
    assert plain.peft_config["default"].r == (8 if init in CHANGES_BASE else 4)
    assert torch.equal(logits(model), expected)  # saving does not change the model that is trained


def test_the_base_is_recorded_as_it_was_loaded(adapt):
    assert adapt(lora_init="pissa").base_sha256 == adapt().base_sha256 != ""


def test_gpt2_is_initialized_by_pissa_and_refused_for_olora():
    """Its layers are Conv1D, whose weights are transposed."""
    import tiny_bases
    from test_families import batch_of

    family = tiny_bases.loaded("vit-gpt2")
    batch, keys = batch_of(family), {"targets": "attention", "r": 4, "alpha": 6, "dropout": 0.0}
    adapted = add_lora(copy.deepcopy(family.base), **keys, options={"init_lora_weights": "pissa"}).eval()
    with torch.no_grad():
        expected = family.loss(family.base, batch, None, None)
        torch.testing.assert_close(family.loss(adapted, batch, None, None), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        RecipeError, match=r"lora_init olora does not support decoder\S+, which is a Conv1D; use pissa"
    ):
        add_lora(copy.deepcopy(family.base), **keys, options={"init_lora_weights": "olora"})


def test_a_rank_above_the_width_is_refused(adapt):
    with pytest.raises(RecipeError, match=r"lora_init pissa allows a rank of at most 32 in text\S+; lower lora_r"):
        adapt(lora_init="pissa", lora_r=40)


def test_another_precision_on_this_device_is_refused(adapt):
    with pytest.raises(RecipeError, match="lora_init olora changes weights of the base, and in bfloat16 the saved ad"):
        adapt(torch.bfloat16, lora_init="olora")


REFUSED = {
    "random": ({"lora_init": False}, "lora_init is false, which is not supported: the adapter would change"),
    "eva": ({"lora_init": "eva"}, "lora_init is 'eva', which is not supported: it needs the base's activations"),
    "corda": ({"lora_init": "corda"}, "lora_init is 'corda', which is not supported: it needs"),
    "loftq": ({"lora_init": "loftq"}, "lora_init is 'loftq', which is not supported: it quantizes"),
    "lora_ga": ({"lora_init": "lora_ga"}, "lora_init is 'lora_ga', which is not supported: it needs gradients"),
    "unknown": ({"lora_init": "zeros"}, "lora_init is 'zeros'; allowed are true, gaussian, orthogonal, olora, pissa"),
    "no number": ({"lora_init": "pissa_niter_x"}, "lora_init is 'pissa_niter_x'; allowed are true"),
    "quantized": ({"lora_init": "pissa", "quantization": "4bit"}, "lora_init pissa changes weights, and quantization"),
    "bf16": ({"lora_init": "olora", "precision": "bf16"}, "in bf16 the saved adapter would differ from the"),
    "odd rank": ({"lora_init": "orthogonal", "lora_r": 5}, "lora_init orthogonal needs even ranks"),
    "odd pattern": ({"lora_init": "orthogonal", "lora_rank_pattern": {"query": 3}}, "lora_rank_pattern has 3"),
    "mica, dora": ({"lora_init": "mica", "lora_variant": "dora"}, "lora_init mica cannot be used with lora_variant"),
    "mica, lora+": ({"lora_init": "mica", "lora_lr_ratio": 2}, "lora_lr_ratio has no effect with lora_init mica"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_when_the_recipe_is_read(refusal, keys, message):
    assert message in refusal(**keys)


def test_the_command_line_sets_it(recipe_file):
    for text, value in (("true", True), ("pissa_niter_16", "pissa_niter_16")):
        assert read_recipe(["--config", recipe_file(), "--lora_init", text]).lora.lora_init == value
