"""Captions are those of transformers' `generate`, to the last token, whatever the beams.

Traps 8, 9. pytest tests/modeling/test_generation.py
"""

import copy

import pytest
import torch

from medcap.modeling.beam_search import beam_search
from medcap.modeling.blip import first_token_id, make_generation_config, prompt_ids

IMAGES = 24
SETTINGS = [
    {"num_beams": 1, "max_new_tokens": 12},
    {"num_beams": 1, "max_new_tokens": 30, "no_repeat_ngram_size": 3},
    {"num_beams": 3, "max_new_tokens": 20},
    {"num_beams": 4, "max_new_tokens": 40, "no_repeat_ngram_size": 3, "length_penalty": 0.6},
    {"num_beams": 4, "max_new_tokens": 25, "no_repeat_ngram_size": 2, "length_penalty": 2.0},
    {"num_beams": 5, "max_new_tokens": 30, "length_penalty": -1.0},
]


def talkative(loaded, eagerness):
    """The tiny base, more or less eager to end a caption: of its own it never does."""
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[loaded[1].tokenizer.sep_token_id] += eagerness
    return model


def pictures():
    return 3 * torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def until_the_end(ids, end):
    """Rows up to their first end: `generate` writes more of it behind where the pad's id is 0."""
    return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]


def ours(model, pixels, settings, given):
    with torch.no_grad():
        features = model.vision_model(pixels).last_hidden_state
    return beam_search(model.text_decoder, features, settings, given)


@pytest.mark.parametrize("eagerness", [0.0, 8.0, 12.0])
@pytest.mark.parametrize("asked", SETTINGS, ids=str)
def test_captions_are_those_of_generate(loaded, asked, eagerness):
    model, end = talkative(loaded, eagerness), loaded[1].tokenizer.sep_token_id
    settings, pixels = make_generation_config(model, **asked), pictures()
    expected = until_the_end(model.generate(pixel_values=pixels, generation_config=settings), end)
    given = prompt_ids(model, loaded[1].tokenizer, "", IMAGES)
    assert until_the_end(ours(model, pixels, settings, given), end) == expected


def test_captions_of_one_batch_end_at_different_times(loaded):
    """Or nothing above would see an image leave the batch."""
    model, end = talkative(loaded, 10.0), loaded[1].tokenizer.sep_token_id
    settings = make_generation_config(model, num_beams=3, max_new_tokens=30)
    rows = until_the_end(ours(model, pictures(), settings, prompt_ids(model, loaded[1].tokenizer, "", IMAGES)), end)
    assert len({len(row) for row in rows}) > 2


@pytest.mark.parametrize("beams", [1, 3])
def test_a_prompt_is_gone_on_from_as_generate_does(loaded, beams):
    model, tokenizer = talkative(loaded, 8.0), loaded[1].tokenizer
    settings, pixels = make_generation_config(model, num_beams=beams, max_new_tokens=9), pictures()
    text = tokenizer(["a picture of"] * IMAGES, return_tensors="pt")
    expected = model.generate(
        pixel_values=pixels, generation_config=settings, input_ids=text["input_ids"],
        attention_mask=text["attention_mask"],
    )  # fmt: skip
    found = ours(model, pixels, settings, prompt_ids(model, tokenizer, "a picture of", IMAGES))
    end = tokenizer.sep_token_id
    assert until_the_end(found, end) == until_the_end(expected, end)
    assert set(found[:, 0].tolist()) == {first_token_id(model)}


def test_an_image_is_captioned_alike_alone_and_among_others(loaded):
    model, tokenizer = talkative(loaded, 10.0), loaded[1].tokenizer
    settings, pixels = make_generation_config(model, num_beams=3, max_new_tokens=20), pictures()
    together = until_the_end(ours(model, pixels, settings, prompt_ids(model, tokenizer, "", IMAGES)), 3)
    given = prompt_ids(model, tokenizer, "", 1)
    assert [until_the_end(ours(model, pixels[row : row + 1], settings, given), 3)[0] for row in range(8)] == together[
        :8
    ]


def test_the_decoder_forgets_pictures_and_beams(loaded):
    model = talkative(loaded, 10.0)
    ours(
        model,
        pictures(),
        make_generation_config(model, num_beams=2, max_new_tokens=3),
        prompt_ids(model, loaded[1].tokenizer, "", IMAGES),
    )
    attentions = [module for module in model.modules() if hasattr(module, "beam_cache")]
    assert len(attentions) == 2 * len(model.text_decoder.bert.encoder.layer)
    assert all(attention.beam_cache is None for attention in attentions)
