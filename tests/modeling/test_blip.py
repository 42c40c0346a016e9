"""Loading BLIP at an image size and quantization, its position embeddings, generation settings and decoding."""

import json
import shutil

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BlipForConditionalGeneration, GenerationConfig

from medcap.modeling.families import family_of
from medcap.modeling.generation import decode_captions
from medcap.modeling.load import load_base
from medcap.modeling.positions import resize_positions

NATIVE = 32  # image size of the tiny base in pixels, with patches of 8


def random_images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def encode(model, pixels, **options):
    with torch.no_grad():
        return model.vision_model(pixel_values=pixels, **options).last_hidden_state


def test_captions_of_the_tiny_base_depend_on_the_image(blip):
    """With the default `initializer_range` all images would have equal features, and no other test could fail."""
    config = family_of(blip[0]).make_generation_config(num_beams=1, max_new_tokens=8)
    ids = blip[0].generate(pixel_values=random_images(NATIVE, count=4), generation_config=config)
    assert len({tuple(row) for row in ids.tolist()}) > 1


@pytest.mark.parametrize("size", [24, 48, 72])
def test_interpolated_positions_equal_the_flag_of_transformers(tiny_base, blip, size):
    resized, _ = load_base(str(tiny_base), image_size=size)
    pixels = random_images(size)
    expected = encode(blip[0], pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(encode(resized.eval(), pixels), expected, atol=1e-5, rtol=0)


def test_interpolated_positions_are_not_the_first_rows(tiny_base, blip):
    """BLIP silently uses the first rows for an image smaller than its own size."""
    resized, _ = load_base(str(tiny_base), image_size=24)
    pixels = random_images(24)
    positions = resized.vision_model.embeddings.position_embedding
    assert positions.shape == (1, 1 + 3 * 3, 32)
    assert (positions - blip[0].vision_model.embeddings.position_embedding[:, :10]).abs().max() > 0.01
    assert (encode(resized.eval(), pixels) - encode(blip[0], pixels)).abs().max() > 0.01


def test_the_native_size_keeps_the_position_embeddings(blip):
    before = blip[0].vision_model.embeddings.position_embedding
    resize_positions(blip[0], NATIVE)
    assert blip[0].vision_model.embeddings.position_embedding is before


@pytest.mark.parametrize("size", [4, 9, 33, 100])
def test_a_size_that_is_no_multiple_of_the_patch_size_raises(blip, size):
    with pytest.raises(ValueError, match=f"image_size is {size}; it must be a multiple of the patch size, 8"):
        resize_positions(blip[0], size)


def test_image_size_changes_model_and_processor(tiny_base):
    model, processor = load_base(str(tiny_base), image_size=48)
    assert processor.image_processor.size == {"height": 48, "width": 48}
    assert model.config.vision_config.image_size == model.vision_model.embeddings.image_size == 48
    assert model.vision_model.embeddings.num_positions == 1 + 6 * 6


def test_a_resized_base_can_be_saved_and_loaded(tiny_base, tmp_path):
    model, processor = load_base(str(tiny_base), image_size=48)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_base(str(tmp_path), image_size=48)
    torch.testing.assert_close(encode(again.eval(), random_images(48)), encode(model.eval(), random_images(48)))


NOT_CAPTIONERS = {
    "another model": {"model_type": "bert"},
    "retrieval": {"model_type": "blip", "architectures": ["BlipForImageTextRetrieval"]},
    "question answering": {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]},
}


@pytest.mark.parametrize("config", NOT_CAPTIONERS.values(), ids=NOT_CAPTIONERS)
def test_another_model_raises(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=f"{tmp_path} is a '(bert|Blip.*)' model; (medcap trains blip, .* copy medcap/|of the BLIP models, )",
    ):
        load_base(str(tmp_path))


def test_a_missing_base_raises(tmp_path):
    with pytest.raises(OSError, match="none"):
        load_base(str(tmp_path / "none"))


def test_missing_weights_are_reported(tiny_base, tmp_path, caplog):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    load_base(str(base))
    assert caplog.messages == []
    weights = load_file(base / "model.safetensors")
    missing = [name for name in weights if "layer.1.crossattention.self.key" in name]
    save_file({name: weight for name, weight in weights.items() if name not in missing}, base / "model.safetensors")
    load_base(str(base))
    (message,) = [record.getMessage() for record in caplog.records if record.name == "medcap.modeling.load"]
    assert f"{base} lacks 2 weights (first: {min(missing)}); they are initialized at random" in message


def test_transformers_blip_supports_only_eager_attention(tiny_base):
    for attention in ("sdpa", "flash_attention_2"):
        with pytest.raises((ValueError, ImportError), match=r"BlipForConditionalGeneration|[Ff]lash"):
            BlipForConditionalGeneration.from_pretrained(tiny_base, attn_implementation=attention)


@pytest.mark.parametrize(("quantization", "kind"), [("8bit", Linear8bitLt), ("4bit", Linear4bit)])
def test_vision_encoder_and_head_are_not_quantized(tiny_base, quantization, kind):
    model, _ = load_base(str(tiny_base), quantization=quantization)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = {name for name, module in layers.items() if isinstance(module, kind)}
    plain = {name for name, module in layers.items() if type(module) is nn.Linear}
    assert quantized == {name for name in layers if name.startswith("text_decoder.bert.encoder.layer.")}
    assert len(quantized) == 2 * (4 + 4 + 2)  # self- and cross-attention, and two of the feed-forward network
    assert plain == layers.keys() - quantized
    assert {name.split(".")[0] for name in plain} == {"vision_model", "text_decoder"}
    head = model.text_decoder.cls.predictions.decoder
    assert head.weight is model.text_decoder.bert.embeddings.word_embeddings.weight
    assert head.weight.dtype == model.vision_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_4bit_layers_compute_in_the_given_dtype(tiny_base, dtype):
    """A T4 has no bfloat16."""
    model, _ = load_base(str(tiny_base), quantization="4bit", dtype=dtype)
    assert {module.compute_dtype for module in model.modules() if isinstance(module, Linear4bit)} == {dtype}


def test_the_first_token_is_not_in_the_tokenizer(blip):
    model, processor = blip
    assert family_of(model).first_token_id == len(processor.tokenizer) == model.config.text_config.bos_token_id
    assert family_of(model).first_token_id != processor.tokenizer.cls_token_id
    assert family_of(model).first_token_id not in processor.tokenizer.get_vocab().values()


def test_generation_starts_from_the_first_token(blip):
    config = family_of(blip[0]).make_generation_config(num_beams=2, max_new_tokens=4)
    ids = blip[0].generate(pixel_values=random_images(NATIVE), generation_config=config)
    assert ids[:, 0].tolist() == [family_of(blip[0]).first_token_id] * 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_max_new_tokens_may_exceed_the_default_of_generate(blip, num_beams):
    blip[0].config.text_config.sep_token_id = None  # only the limit ends a caption
    config = family_of(blip[0]).make_generation_config(num_beams=num_beams, max_new_tokens=30)
    ids = blip[0].generate(pixel_values=random_images(NATIVE), generation_config=config)
    assert ids.shape == (2, 1 + 30)


SETTINGS = {
    "greedy": {"num_beams": 1, "max_new_tokens": 1},
    "beams": {"num_beams": 4, "max_new_tokens": 96, "length_penalty": 0.5},
    "no repeated n-grams": {"num_beams": 2, "max_new_tokens": 30, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_generation_settings_can_be_saved_and_loaded(blip, tmp_path, settings):
    config = family_of(blip[0]).make_generation_config(**settings)
    config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    assert again.to_dict() == config.to_dict()
    assert not again.do_sample


def test_without_a_prompt_captions_start_with_the_first_token(blip):
    assert family_of(*blip).start_ids("", 3).tolist() == [[family_of(blip[0]).first_token_id]] * 3


DECODED = {
    "empty": ("", ""),
    "a word": ("mass", "mass"),
    "capitals of known terms": ("Chest X-ray", "chest X-ray"),
    "punctuation and numbers": (
        "Right-sided 3.5 cm mass (arrow) on T2-weighted MRI, 3 x 4 cm.",
        "right-sided 3.5 cm mass (arrow) on T2-weighted MRI, 3 x 4 cm.",
    ),
}


@pytest.mark.parametrize(("text", "expected"), DECODED.values(), ids=DECODED)
def test_decode_captions(blip, text, expected):
    tokenizer = blip[1].tokenizer
    ids = torch.tensor([[*tokenizer(text)["input_ids"][1:], *[tokenizer.pad_token_id] * 3]])
    assert decode_captions(tokenizer, ids) == [expected]
    assert decode_captions(tokenizer, ids.tolist()) == [expected]


def test_decoding_no_captions(blip):
    assert decode_captions(blip[1].tokenizer, []) == []
