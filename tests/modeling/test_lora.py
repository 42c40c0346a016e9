"""Adapters sit on the layers that are meant, never on the head, and can be merged (traps 11, 12, 13, 15).

pytest tests/modeling/test_lora.py
"""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from medcap.modeling.blip import load_blip
from medcap.modeling.lora import TARGETS, add_lora, is_adapter, matching_layers, merged, trainable_summary

LAYERS = 2  # of the tiny base's decoder, and of its tower


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
}  # fmt: skip


def adapted(blip, targets, **changes):
    return add_lora(blip[0], targets=targets, **{"r": 4, "alpha": 8, "dropout": 0.0, **changes})


def wrapped(model):
    """Names, as in the base, of the layers that have an adapter."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    }


def randomised(model):
    """The adapter as if it had been trained: a new one adds zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def logits(model):
    generator = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([[192, 20, 30, 40], [192, 7, 8, 3]])
    return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_every_target_set_is_written_out_here():
    assert TARGETS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("targets", EXPECTED)
def test_a_target_set_wraps_exactly_these_layers(blip, targets):
    assert wrapped(adapted(blip, targets)) == EXPECTED[targets]


@pytest.mark.parametrize("targets", EXPECTED)
def test_only_the_adapter_learns(blip, targets):
    model = adapted(blip, targets)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {
        f"base_model.model.{name}.lora_{side}.default.weight" for name in EXPECTED[targets] for side in "AB"
    }


@pytest.mark.parametrize("targets", EXPECTED)
def test_the_head_is_never_wrapped(blip, targets):
    model = adapted(blip, targets)
    assert not [name for name in wrapped(model) if ".cls." in name]
    tied = model.base_model.model.text_decoder
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("targets", EXPECTED)
def test_merged_logits_equal_the_adapters(blip, targets):
    base = logits(blip[0])
    model = randomised(adapted(blip, targets))
    expected = logits(model)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(logits(merged(model)), expected, atol=1e-5, rtol=1e-5)


def test_a_merged_model_is_a_plain_blip(blip):
    model = merged(randomised(adapted(blip, "text-and-vision-attention")))
    assert type(model) is type(blip[0])
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_a_list_of_names_reaches_the_self_attention_only(blip):
    """What the seed did: nothing that looks at the picture learns."""
    config = LoraConfig(target_modules=["attention.self.query", "attention.self.key"])
    found = wrapped(get_peft_model(blip[0], config))
    assert found == text("attention.self.query", "attention.self.key")
    assert EXPECTED["query-key"] - found == text("crossattention.self.query", "crossattention.self.key")


def test_with_the_head_wrapped_merging_would_change_the_model(blip):
    """Why add_lora refuses it: all-linear wraps the head, and merging writes into the embeddings."""
    model = randomised(get_peft_model(blip[0], LoraConfig(target_modules="all-linear")))
    expected = logits(model)
    assert "text_decoder.cls.predictions.decoder" in wrapped(model)
    assert (logits(merged(model)) - expected).abs().max() > 0.1


REFUSED = {
    "nothing": ("", "matches no linear layer; use one of query-key, query-value, attention, text, "),
    "a name that does not exist": ("attentions", "matches no linear layer"),
    "a part of a name": (r"crossattention\.self\.query", "matches no linear layer"),
    "not linear": (r".*layer\.0\.attention", "matches no linear layer"),
    "PEFT's own word": ("all-linear", "matches no linear layer"),
    "the head": (r"text_decoder\.cls\.predictions\.decoder", "reaches text_decoder.cls.predictions.decoder, which"),
    "every dense": (r".*\.dense", "reaches text_decoder.cls.predictions.transform.dense, which is tied"),
    "no regular expression": ("text(", r"'text\(' is not a regular expression"),
}


@pytest.mark.parametrize(("targets", "said"), REFUSED.values(), ids=REFUSED)
def test_targets_that_cannot_be_adapted_raises(blip, targets, said):
    with pytest.raises(ValueError, match=said):
        adapted(blip, targets)
    assert not wrapped(blip[0])


def test_a_regular_expression_of_ones_own_is_a_target_set(blip):
    model = adapted(blip, r".*layer\.1\.crossattention\.self\.value")
    assert wrapped(model) == {"text_decoder.bert.encoder.layer.1.crossattention.self.value"}


def test_matching_layers_are_whole_names_of_linear_layers(blip):
    assert matching_layers(blip[0], r"vision_model\.encoder\.layers\.0\.mlp\.fc.") == [
        "vision_model.encoder.layers.0.mlp.fc1",
        "vision_model.encoder.layers.0.mlp.fc2",
    ]


def test_the_saved_adapter_names_neither_a_task_nor_a_class_of_ours(blip, tmp_path):
    adapted(blip, "attention", dropout=0.1).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["task_type"] is None
    assert saved["auto_mapping"]["base_model_class"] == "BlipForConditionalGeneration"
    assert "medcap" not in json.dumps(saved)
    assert {key: saved[key] for key in ("r", "lora_alpha", "lora_dropout", "bias")} == {
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none"
    }  # fmt: skip


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"])
def test_with_a_task_type_blip_could_not_be_called(blip, task_type):
    model = get_peft_model(blip[0], LoraConfig(task_type=task_type, target_modules=TARGETS["attention"]))
    with pytest.raises(TypeError, match="argument"):
        logits(model)


def test_a_saved_adapter_gives_the_same_logits_again(tiny_base, blip, tmp_path):
    model = randomised(adapted(blip, "text-and-vision-attention"))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load_blip(str(tiny_base))[0], tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_is_a_folder_with_its_config(tmp_path):
    assert not is_adapter(tmp_path / "nowhere")
    assert not is_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter(str(tmp_path))


def test_the_summary_says_how_much_learns(blip):
    model = adapted(blip, "query-key")
    total = sum(weight.numel() for weight in model.parameters())
    assert trainable_summary(model) == (  # 8 layers of 32 x 32, with 4 x 32 and 32 x 4 each
        f"2,048 of {total:,} weights learn ({2048 / total:.2%}), in 8 layers"
    )
