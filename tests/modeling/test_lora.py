"""LoRA adapters: target layers, trainable parameters, merging and saving."""

import json

import pytest
import torch
from adapters import LAYERS, adapted_layers, logits, randomized
from peft import LoraConfig, PeftModel, get_peft_model

from medcap.modeling.families.blip import TARGETS
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora, trainable_summary


def text(*ends):
    return {f"text_decoder.bert.encoder.layer.{n}.{end}" for n in range(LAYERS) for end in ends}


def vision(*ends):
    return {f"vision_model.encoder.layers.{n}.{end}" for n in range(LAYERS) for end in ends}


EXPECTED = {
    "query-key": text(
        "attention.self.query", "attention.self.key", "crossattention.self.query", "crossattention.self.key"
    ),
    "query-value": text(
        "attention.self.query", "attention.self.value", "crossattention.self.query", "crossattention.self.value"
    ),
    "attention": text(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "crossattention.self.query", "crossattention.self.key", "crossattention.self.value",
        "crossattention.output.dense",
    ),
    "text": text(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "crossattention.self.query", "crossattention.self.key", "crossattention.self.value",
        "crossattention.output.dense", "intermediate.dense", "output.dense",
    ),
    "text-and-vision-attention": text(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "crossattention.self.query", "crossattention.self.key", "crossattention.self.value",
        "crossattention.output.dense",
    ) | vision("self_attn.qkv", "self_attn.projection"),
    "all-linear": text(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "crossattention.self.query", "crossattention.self.key", "crossattention.self.value",
        "crossattention.output.dense", "intermediate.dense", "output.dense",
    ) | vision("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2"),
}  # fmt: skip


def adapted(blip, targets, **changes):
    return add_lora(blip[0], targets=targets, **{"r": 4, "alpha": 8, "dropout": 0.0, **changes})


def test_every_target_set_is_tested():
    assert TARGETS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("targets", EXPECTED)
def test_a_target_set_adapts_exactly_these_layers(blip, targets):
    assert adapted_layers(adapted(blip, targets)) == EXPECTED[targets]


@pytest.mark.parametrize("targets", EXPECTED)
def test_only_the_adapter_is_trainable(blip, targets):
    model = adapted(blip, targets)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable == {
        f"base_model.model.{name}.lora_{side}.default.weight" for name in EXPECTED[targets] for side in "AB"
    }


@pytest.mark.parametrize("targets", EXPECTED)
def test_the_head_has_no_adapter(blip, targets):
    model = adapted(blip, targets)
    assert not [name for name in adapted_layers(model) if ".cls." in name]
    tied = model.base_model.model.text_decoder
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("targets", EXPECTED)
def test_merging_keeps_the_logits(blip, targets):
    base = logits(blip[0])
    model = randomized(adapted(blip, targets))
    expected = logits(model)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_a_merged_model_is_a_plain_blip(blip):
    model = randomized(adapted(blip, "text-and-vision-attention")).merge_and_unload()
    assert type(model) is type(blip[0])
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_a_list_of_names_adapts_the_self_attention_only(blip):
    """The original project did this: its cross-attention was not trained."""
    config = LoraConfig(target_modules=["attention.self.query", "attention.self.key"])
    layers = adapted_layers(get_peft_model(blip[0], config))
    assert layers == text("attention.self.query", "attention.self.key")


def test_merging_an_adapted_head_would_change_the_model(blip):
    """PEFT's "all-linear" adapts the head, and merging would change the tied embeddings: `add_lora` refuses it."""
    model = randomized(get_peft_model(blip[0], LoraConfig(target_modules="all-linear")))
    expected = logits(model)
    assert "text_decoder.cls.predictions.decoder" in adapted_layers(model)
    assert (logits(model.merge_and_unload()) - expected).abs().max() > 0.1


REFUSED = {
    "nothing": ("", "matches no linear layer; use one of query-key, query-value, attention, text, "),
    "a name that does not exist": ("attentions", "matches no linear layer"),
    "part of a name": (r"crossattention\.self\.query", "matches no linear layer"),
    "not linear": (r".*layer\.0\.attention", "matches no linear layer"),
    "the head": (r"text_decoder\.cls\.predictions\.decoder", "reaches text_decoder.cls.predictions.decoder, which"),
    "every dense": (r".*\.dense", "reaches text_decoder.cls.predictions.transform.dense, which is tied"),
    "no regular expression": ("text(", r"'text\(' is not a regular expression"),
}


@pytest.mark.parametrize(("targets", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_targets_raise(blip, targets, message):
    with pytest.raises(ValueError, match=message):
        adapted(blip, targets)
    assert not adapted_layers(blip[0])


def test_targets_may_be_a_regular_expression(blip):
    model = adapted(blip, r".*layer\.1\.crossattention\.self\.value")
    assert adapted_layers(model) == {"text_decoder.bert.encoder.layer.1.crossattention.self.value"}


def test_a_saved_adapter_names_no_task_type_and_no_class_of_medcap(blip, tmp_path):
    adapted(blip, "attention", dropout=0.1).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["task_type"] is None
    assert saved["auto_mapping"]["base_model_class"] == "BlipForConditionalGeneration"
    assert "medcap" not in json.dumps(saved)
    assert {key: saved[key] for key in ("r", "lora_alpha", "lora_dropout", "bias")} == {
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none"
    }  # fmt: skip


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"])
def test_blip_cannot_be_called_with_a_task_type(blip, task_type):
    model = get_peft_model(blip[0], LoraConfig(task_type=task_type, target_modules=TARGETS["attention"]))
    with pytest.raises(TypeError, match="argument"):
        logits(model)


def test_a_saved_adapter_has_the_same_logits(tiny_base, blip, tmp_path):
    model = randomized(adapted(blip, "text-and-vision-attention"))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load_base(str(tiny_base))[0], tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_trainable_summary(blip):
    model = adapted(blip, "query-key")
    total = sum(weight.numel() for weight in model.parameters())
    assert trainable_summary(model) == (  # 8 layers of 32 x 32, with 4 x 32 and 32 x 4 each
        f"2,048 of {total:,} parameters are trainable ({2048 / total:.2%}), in 8 layers"
    )
