"""Adapters that PEFT alone has saved, and generation settings of any origin: applied, or refused by name.

pytest tests/modeling/test_adapter.py
"""

import copy
import json

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from medcap import inference
from medcap.evaluation.scoring import describe_decoding
from medcap.inference import load_captioner
from medcap.modeling.adapter import base_of, saved_generation
from medcap.modeling.families import family_of
from medcap.modeling.families.blip import TARGETS
from medcap.modeling.generation import EXTRA_SETTINGS, extra_settings
from medcap.recipe import GenerationArguments, RecipeError


@pytest.fixture
def plain_adapter(loaded, tiny_base, tmp_path):
    """Return a function that saves an adapter with PEFT alone, and with generation settings if given."""

    def save(task_type=None, **settings):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=TARGETS["attention"], init_lora_weights=False, task_type=task_type)
        get_peft_model(copy.deepcopy(loaded[0]), config).save_pretrained(tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(tiny_base)
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / "adapter" / "README.md").unlink()
        if settings:
            (tmp_path / "adapter" / "generation_config.json").write_text(json.dumps(settings))
        return str(tmp_path / "adapter")

    return save


def pixels(size=32):
    return 3 * torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_an_adapter_of_peft_alone_is_used_with_its_base(plain_adapter, task_type):
    captioner = load_captioner(plain_adapter(task_type))
    settings = captioner.generation_config
    defaults = vars(GenerationArguments())
    unset = {name for name in defaults if name.startswith("rerank")} | {"min_new_tokens"}  # off by default
    assert not {name for name in unset if getattr(settings, name, None)}
    assert {name: getattr(settings, name) for name in defaults if name not in unset}.items() <= defaults.items()
    assert (captioner.image_size, captioner.prompt, captioner.recipe) == (32, "", {})
    ids = captioner.family.base.generate(pixel_values=pixels(), generation_config=settings)
    expected = captioner.processor.batch_decode(ids, skip_special_tokens=True)
    captions, _ = captioner.generate({"pixel_values": pixels()})
    assert [text.replace(" ", "") for text in captions] == [text.replace(" ", "") for text in expected]


def test_an_adapter_without_a_base_says_so(plain_adapter, tmp_path):
    folder = plain_adapter()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base model: give it with --base"):
        base_of(folder)


APPLIED = {
    "min_length": 11, "repetition_penalty": 3.0, "early_stopping": False,
    "bad_words_ids": [[7], [9, 11]], "sequence_bias": [[[12], 9.0]], "suppress_tokens": list(range(20, 60)),
    "begin_suppress_tokens": list(range(10, 90)), "forced_bos_token_id": 15, "forced_eos_token_id": 3,
    "exponential_decay_length_penalty": [3, 1.5], "remove_invalid_values": True, "renormalize_logits": True,
}  # fmt: skip


def test_every_other_setting_is_tried():
    assert APPLIED.keys() == EXTRA_SETTINGS.keys()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", APPLIED)
def test_other_settings_are_those_of_generate(loaded, name, beams):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[processor.tokenizer.sep_token_id] += 8  # some captions end early
        features = model.vision_model(pixels()).last_hidden_state
    more = {name: APPLIED[name]}
    config = family_of(model).make_generation_config(
        num_beams=beams, max_new_tokens=12, no_repeat_ngram_size=2, **more
    )
    assert beams == 1 or getattr(config, name) == APPLIED[name]
    expected = model.generate(pixel_values=pixels(), generation_config=config)
    ids = family_of(model, processor).generate({}, features, config)
    assert decoded(processor, ids) == decoded(processor, expected)


def decoded(processor, ids):
    return processor.batch_decode(ids, skip_special_tokens=True)


def test_settings_of_an_adapter_are_applied(plain_adapter):
    captioner = load_captioner(plain_adapter(num_beams=1, max_new_tokens=9, suppress_tokens=list(range(5, 90))))
    family = captioner.family
    ids = family.generate({}, family.encode(pixels()), captioner.generation_config)
    assert not {*ids.flatten().tolist()} & set(range(5, 90))
    assert captioner.generation_config.num_beams == 1


REFUSED = {
    "do_sample": True, "num_return_sequences": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6,
    "guidance_scale": 1.5, "stop_strings": ["."], "max_time": 2.0, "force_words_ids": [[5]], "dola_layers": "high",
    "watermarking_config": {}, "encoder_repetition_penalty": 2.0, "some_new_setting": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_be_applied_is_refused_by_name(tmp_path, name, value):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value, "num_beams": 2}))
    with pytest.raises(RecipeError) as caught:
        saved_generation(str(tmp_path))
    assert f"sets {name} to {value!r}, which medcap cannot apply: remove it there" in str(caught.value)


def test_settings_without_effect_are_accepted(tmp_path):
    neutral = {
        "eos_token_id": 2, "temperature": 0.7, "top_p": 0.9, "use_cache": True, "do_sample": False,
        "repetition_penalty": 1.0, "early_stopping": True, "num_return_sequences": 1, "length_penalty": 0.5,
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    assert saved_generation(str(tmp_path)) == {"length_penalty": 0.5}


def test_what_transformers_saves_is_accepted(tmp_path):
    GenerationConfig(num_beams=3, max_new_tokens=7).save_pretrained(tmp_path)
    assert saved_generation(str(tmp_path)) == {"num_beams": 3, "max_new_tokens": 7}


@pytest.mark.parametrize(("prompt", "tokens"), [("", 19), ("a large mass", 16)])
def test_max_length_includes_the_first_token_and_the_prompt(plain_adapter, tmp_path, prompt, tokens):
    folder = plain_adapter(max_length=20)
    (tmp_path / "adapter" / "recipe.yaml").write_text(yaml.safe_dump({"prompt": prompt}))
    assert load_captioner(folder).generation_config.max_new_tokens == tokens


UNUSABLE = {
    "prompt": ("word " * 1000, "prompt is 5,000 characters long; allowed are 1,000"),
    "precision": ("fp8", "precision is 'fp8'; expected auto, fp32, bf16, fp16"),
    "model_code": ("slow", "model_code is 'slow'; expected fast, plain"),
}


@pytest.mark.parametrize(("key", "value", "message"), [(key, *case) for key, case in UNUSABLE.items()], ids=UNUSABLE)
def test_an_unusable_value_in_a_saved_recipe_is_refused_before_loading(
    plain_adapter, tmp_path, monkeypatch, key, value, message
):
    folder = plain_adapter()
    (tmp_path / "adapter" / "recipe.yaml").write_text(yaml.safe_dump({key: value, "unknown": 1}))
    monkeypatch.setattr(inference, "load_base", None)
    with pytest.raises(RecipeError, match=message):
        load_captioner(folder)


def test_a_prompt_without_room_for_a_caption_is_refused(loaded):
    model, processor = loaded
    room = model.config.text_config.max_position_embeddings - 1
    assert family_of(model, processor).check_prompt("a " * 7, room - 7) == 7
    with pytest.raises(RecipeError, match=f"prompt has 8 tokens and max_new_tokens is {room - 7}; .* room for {room}"):
        family_of(model, processor).check_prompt("a " * 8, room - 7)


DECODING = {
    "beams-1,max-9,ngram-0": {"num_beams": 1},
    "beams-3,max-9,ngram-0": {"num_beams": 3},
    "beams-3,max-9,ngram-0,length_penalty-0.6": {"num_beams": 3, "length_penalty": 0.6},
    "beams-1,max-9,ngram-0,min_new_tokens-2,repetition_penalty-1.5": {
        "num_beams": 1, "repetition_penalty": 1.5, "min_new_tokens": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "settings"), DECODING.items(), ids=DECODING)
def test_a_signature_names_every_setting(loaded, text, settings):
    assert describe_decoding(family_of(loaded[0]).make_generation_config(max_new_tokens=9, **settings)) == text


def test_a_signature_tells_lists_apart(loaded):
    settings = [
        family_of(loaded[0]).make_generation_config(num_beams=1, max_new_tokens=9, suppress_tokens=list(range(last)))
        for last in (30, 31)
    ]
    assert len({describe_decoding(each) for each in settings}) == 2
    assert extra_settings(settings[0].to_dict()).keys() == {"suppress_tokens"}
