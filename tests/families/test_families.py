"""Every family: loss, gradient and captions are those of the base's own code, in any batch, from features or images.

The expected values come from the processor and the model of transformers, called as their documentation shows.
"""

import re

import numpy as np
import pytest
import tiny_bases
import torch
from PIL import Image
from torch import nn
from transformers.pytorch_utils import Conv1D

from medcap.data.captions import IGNORED, caption_ids
from medcap.modeling.families.blip2 import Blip2
from medcap.modeling.families.encoder_decoder import EncoderDecoder
from medcap.modeling.generation import decode_captions
from medcap.training.micro_batches import split_batch

CAPTIONS = ["a large cyst", "ct of the chest with a small mass in the left lung", "mass", "axial mri"]
PROMPT = "showing an image"


@pytest.fixture(params=tiny_bases.MAKERS)
def family(request):
    """The loaded tiny base of each family, read-only."""
    return tiny_bases.loaded(request.param)


def images(count=4):
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (70, 50), (32, 32), (90, 33)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes[:count]]


def rows_of(family, numbers=range(4)):
    pixels = family.pixels()
    return [{"pixel_values": pixels(images()[n]), "caption": CAPTIONS[n], "row": n} for n in numbers]


def batch_of(family, numbers=range(4), prompt=PROMPT):
    return family.collator(40, prompt)(rows_of(family, numbers))


def own_inputs(family, number):
    """Return the arguments of the base for one image and caption, without medcap's collator."""
    tokenizer, processor = family.tokenizer, family.processor
    (caption,) = caption_ids(tokenizer, [CAPTIONS[number]], "", family.end_token_id)
    if isinstance(family, EncoderDecoder):
        start = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        (caption,) = caption_ids(tokenizer, [CAPTIONS[number]], PROMPT, family.end_token_id)
        pixels = processor.image_processor(images()[number], return_tensors="pt")["pixel_values"]
        labels = torch.tensor([[IGNORED] * len(start) + caption])
        decoder_ids = torch.tensor([[family.base.config.decoder_start_token_id, *start, *caption[:-1]]])
        return {"pixel_values": pixels, "decoder_input_ids": decoder_ids, "labels": labels}
    inputs = dict(processor(images=[[images()[number]]], text=[family.prompt_text(PROMPT)], return_tensors="pt"))
    inputs.pop("labels", None)
    if isinstance(family, Blip2) and family.is_encoder_decoder:
        return {**inputs, "labels": torch.tensor([caption])}
    length = inputs["input_ids"].shape[1]
    more = {"attention_mask": 1, "token_type_ids": family.row.caption_type}
    for name in [name for name, values in inputs.items() if values.shape == (1, length)]:
        tail = torch.tensor([caption]) if name == "input_ids" else torch.full((1, len(caption)), more.get(name, 0))
        inputs[name] = torch.cat([inputs[name], tail], 1)
    return {**inputs, "labels": torch.cat([torch.full((1, length), IGNORED), torch.tensor([caption])], 1)}


def probe(family):
    """Return a weight of an attention layer of the decoder."""
    names = [name for name, module in family.base.named_modules() if re.fullmatch(family.targets["query-key"], name)]
    return family.base.get_submodule(names[-1]).weight


def gradient(loss, weight):
    return torch.autograd.grad(loss, [weight])[0]


@pytest.mark.parametrize("number", [0, 1])
def test_loss_and_gradient_equal_those_of_the_model(family, number):
    weight = probe(family).requires_grad_()
    expected = family.base(**own_inputs(family, number)).loss
    loss = family.loss(family.base, batch_of(family, [number]), None, None)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, weight), gradient(expected, weight), atol=1e-5, rtol=1e-4)
    assert gradient(family.loss(family.base, batch_of(family, [number]), None, None), weight).abs().max() > 1e-5


def test_batch_is_the_sum_of_its_captions(family):
    """Padding of images, prompts and captions changes nothing."""
    with torch.no_grad():
        together = family.loss(family.base, batch_of(family), None, 1)
        single = [family.loss(family.base, batch_of(family, [number]), None, 1) for number in range(4)]
    torch.testing.assert_close(together, torch.stack(single).sum(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_parts_of_a_batch_add_up_to_its_loss(family, rows):
    """So 8 x 1 = 2 x 4 captions of a step, whose loss is divided by one number of labels."""
    batch = batch_of(family)
    with torch.no_grad():
        parts = [family.loss(family.base, part, None, 7) for part in split_batch(batch, rows)]
        whole = family.loss(family.base, batch, None, 7)
    torch.testing.assert_close(torch.stack(parts).sum(), whole, atol=1e-4, rtol=1e-5)


def test_features_give_the_loss_and_captions_of_images(family):
    batch, config = batch_of(family), family.make_generation_config(num_beams=2, max_new_tokens=6)
    if reason := family.feature_obstacle():
        assert reason in (
            "the processor splits images, or keeps their sizes",
            "the Q-Former of InstructBLIP reads the prompt",
        )
        return
    with torch.no_grad():
        features = family.encode(batch["pixel_values"])
        assert features.shape == (4, *family.feature_shape())
        no_images = {name: values for name, values in batch.items() if name != "pixel_values"}
        torch.testing.assert_close(
            family.loss(family.base, no_images, features, None), family.loss(family.base, batch, None, None)
        )
        ids = family.generate(no_images, features, config, PROMPT)
    assert decode_captions(family.tokenizer, ids) == [own_caption(family, number, config) for number in range(4)]


def own_caption(family, number, config):
    """Return the caption of `generate` of the base, from the inputs of its processor."""
    processor, tokenizer = family.processor, family.tokenizer
    if isinstance(family, EncoderDecoder):
        pixels = processor.image_processor(images()[number], return_tensors="pt")["pixel_values"]
        start = [family.base.config.decoder_start_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
        ids = family.base.generate(pixels, decoder_input_ids=torch.tensor([start]), generation_config=config)
        return decode_captions(tokenizer, ids[:, len(start) :])[0]
    inputs = processor(images=[[images()[number]]], text=[family.prompt_text(PROMPT)], return_tensors="pt")
    inputs.pop("labels", None)
    ids = family.base.generate(**inputs, generation_config=config)
    is_behind_prompt = not (isinstance(family, Blip2) and family.is_encoder_decoder)
    return decode_captions(tokenizer, ids[:, inputs["input_ids"].shape[1] :] if is_behind_prompt else ids)[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_of_a_batch_equal_those_of_generate(family, beams):
    config = family.make_generation_config(num_beams=beams, max_new_tokens=8, no_repeat_ngram_size=2)
    batch = batch_of(family)
    with torch.no_grad():
        features = None if family.feature_obstacle() else family.encode(batch["pixel_values"])
        captions = decode_captions(family.tokenizer, family.generate(batch, features, config, PROMPT))
    assert captions == [own_caption(family, number, config) for number in range(4)]


def test_loss_depends_on_the_image(family):
    """Else other tests here could not fail."""
    rows = rows_of(family, [0, 1])
    rows[1]["caption"] = rows[0]["caption"]
    with torch.no_grad():
        first, second = (family.loss(family.base, family.collator(40, PROMPT)([row]), None, None) for row in rows)
    assert (first - second).abs() > 1e-4


def test_labels_are_the_caption_and_its_end(family):
    batch = batch_of(family)
    for number, labels in enumerate(batch["labels"]):
        *caption, end = labels[labels != IGNORED].tolist()
        assert family.tokenizer.decode(caption).strip() == CAPTIONS[number]
        assert end == family.end_token_id == family.make_generation_config(num_beams=1, max_new_tokens=1).eos_token_id


def test_long_captions_keep_their_end(family):
    batch = family.collator(4, "")([{**row, "caption": CAPTIONS[1]} for row in rows_of(family, [0, 1])])
    labels = batch["labels"][0]
    assert labels[labels != IGNORED].tolist()[-1] == family.end_token_id
    assert 2 <= int((labels != IGNORED).sum()) <= 4


def test_every_image_has_one_vector(family):
    batch = batch_of(family)
    with torch.no_grad():
        features = None if family.feature_obstacle() else family.encode(batch["pixel_values"])
        vectors = family.vectors(batch, features)
    assert len(vectors) == 4
    assert vectors.ndim == 2
    assert not torch.allclose(vectors[0], vectors[1])


def test_roles_name_layers_of_decoder_and_vision_encoder(family):
    """Embeddings, projectors and heads have no role; every role is a part of the next."""
    linear = {n: m for n, m in family.base.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    roles = {role: {n for n in linear if re.fullmatch(pattern, n)} for role, pattern in family.targets.items()}
    vision = {n for n, m in linear.items() if m in {*family.vision_encoder.modules()}}
    assert roles["query-key"] < roles["attention"] < roles["text"] < roles["all-linear"]
    assert roles["query-value"] < roles["attention"] < roles["text-and-vision-attention"]
    assert not roles["text"] & vision
    assert roles["text-and-vision-attention"] & vision
    head = family.base.get_output_embeddings()
    assert head is None or not any(linear[name] is head for name in roles["all-linear"])
