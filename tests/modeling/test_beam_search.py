"""Beam search generates the same tokens as transformers' `generate`."""

import copy

import pytest
import torch

from medcap.modeling.beam_search import beam_search
from medcap.modeling.families import family_of

IMAGES = 24
SETTINGS = [
    {"num_beams": 1, "max_new_tokens": 12},
    {"num_beams": 1, "max_new_tokens": 30, "no_repeat_ngram_size": 3},
    {"num_beams": 3, "max_new_tokens": 20},
    {"num_beams": 4, "max_new_tokens": 40, "no_repeat_ngram_size": 3, "length_penalty": 0.6},
    {"num_beams": 4, "max_new_tokens": 25, "no_repeat_ngram_size": 2, "length_penalty": 2.0},
    {"num_beams": 5, "max_new_tokens": 30, "length_penalty": -1.0},
    {"num_beams": 1, "max_new_tokens": 20, "min_new_tokens": 7},
    {"num_beams": 3, "max_new_tokens": 20, "min_new_tokens": 9, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "max_new_tokens": 20, "num_return_sequences": 3},
]


def with_end_bias(loaded, bias):
    """Return the tiny base with a higher score for [SEP], which it never generates otherwise."""
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[loaded[1].tokenizer.sep_token_id] += bias
    return model


def random_images(count=IMAGES):
    return 3 * torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))[:count]


def until_end(loaded, ids):
    """Return rows up to their first [SEP]; `generate` pads with more of them."""
    end = loaded[1].tokenizer.sep_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]


def search(loaded, model, pixels, prompt="", **settings):
    with torch.no_grad():
        features = model.vision_model(pixels).last_hidden_state
    start = family_of(model, loaded[1]).start_ids(prompt, len(pixels))
    return until_end(
        loaded, beam_search(model.text_decoder, features, family_of(model).make_generation_config(**settings), start)
    )


@pytest.mark.parametrize("bias", [0.0, 8.0, 12.0])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_captions_equal_those_of_generate(loaded, settings, bias):
    model, pixels = with_end_bias(loaded, bias), random_images()
    expected = model.generate(
        pixel_values=pixels, generation_config=family_of(model).make_generation_config(**settings)
    )
    assert search(loaded, model, pixels, **settings) == until_end(loaded, expected)


def test_captions_of_one_batch_have_different_lengths(loaded):
    """Otherwise no test here would remove a finished image from the batch."""
    rows = search(loaded, with_end_bias(loaded, 10.0), random_images(), num_beams=3, max_new_tokens=30)
    assert len({len(row) for row in rows}) > 2


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_with_a_prompt_equal_those_of_generate(loaded, beams):
    model, pixels, settings = with_end_bias(loaded, 8.0), random_images(), {"num_beams": beams, "max_new_tokens": 9}
    text = loaded[1].tokenizer(["a picture of"] * IMAGES, return_tensors="pt")
    expected = model.generate(
        pixel_values=pixels, generation_config=family_of(model).make_generation_config(**settings),
        input_ids=text["input_ids"], attention_mask=text["attention_mask"],
    )  # fmt: skip
    rows = search(loaded, model, pixels, "a picture of", **settings)
    assert rows == until_end(loaded, expected)
    assert {row[0] for row in rows} == {family_of(model).first_token_id}


def test_captions_do_not_depend_on_the_batch(loaded):
    model, settings = with_end_bias(loaded, 10.0), {"num_beams": 3, "max_new_tokens": 20}
    pixels = random_images(8)
    single = [search(loaded, model, image[None], **settings)[0] for image in pixels]
    assert single == search(loaded, model, pixels, **settings)


def test_the_cache_is_removed_after_the_search(loaded):
    model = with_end_bias(loaded, 10.0)
    search(loaded, model, random_images(), num_beams=2, max_new_tokens=3)
    attentions = [module for module in model.modules() if hasattr(module, "beam_cache")]
    assert len(attentions) == 2 * len(model.text_decoder.bert.encoder.layer)
    assert all(attention.beam_cache is None for attention in attentions)
