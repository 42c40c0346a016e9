"""Captions become the ids and labels that BLIP learns from, and nothing is learned from pads or prompts.

Traps 6, 7, 8, 10. pytest tests/data/test_captions.py
"""

import pytest
import torch

from medcap.data.captions import IGNORED, CaptionCollator, TokenizedCaptions, clean_caption

DEC = 1000  # not an id of the tokenizer, as in the Hub's BLIP


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1].tokenizer


def collated(tokenizer, captions, **settings):
    collate = CaptionCollator(tokenizer, DEC, **{"max_caption_tokens": 96, **settings})
    return collate([{"pixel_values": torch.zeros(3, 2, 2), "caption": caption} for caption in captions])


def ids_of(tokenizer, *words):
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


CLEANED = {
    "nothing": ("", ""),
    "blanks alone": (" \t\r\n", ""),
    "a narrow no-break space alone": ("\u202f", ""),
    "clean already": ("Chest X-ray.", "Chest X-ray."),
    "at the ends": ("\n A mass. \u00a0", "A mass."),
    "a line break": ("A\r\nmass", "A mass"),
    "odd blanks": ("3\u00a05\u202fcm\u2009by\u20034\u2028cm", "3 5 cm by 4 cm"),
    "runs": ("a  \n\n  b", "a b"),
}


@pytest.mark.parametrize(("text", "expected"), CLEANED.values(), ids=CLEANED)
def test_captions_are_cleaned(text, expected):
    assert clean_caption(text) == expected
    assert clean_caption(expected) == expected


def test_a_caption_becomes_dec_tokens_sep(tokenizer):
    batch = collated(tokenizer, ["A large mass"])
    words = ids_of(tokenizer, "a", "large", "mass", "[SEP]")
    assert batch["input_ids"].tolist() == [[DEC, *words]]
    assert batch["labels"].tolist() == [[IGNORED, *words]]
    assert batch["attention_mask"].tolist() == [[1] * 5]
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "pixel_values": torch.float32, "input_ids": torch.int64, "attention_mask": torch.int64, "labels": torch.int64,
    }  # fmt: skip


def test_the_first_token_is_the_one_given_and_not_the_tokenizers(tokenizer):
    ids = collated(tokenizer, ["", "a mass", "mass " * 200])["input_ids"]
    assert ids[:, 0].tolist() == [DEC] * 3
    assert tokenizer.cls_token_id not in ids.tolist()[0]


def test_a_blank_caption_is_an_end_and_no_more(tokenizer):
    sep = tokenizer.sep_token_id
    batch = collated(tokenizer, [""])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[DEC, sep]], [[IGNORED, sep]])


def test_nothing_is_learned_from_pads(tokenizer):
    batch = collated(tokenizer, ["mass", "a large solid mass"])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_token_id] * 3
    assert batch["labels"][0].tolist() == [IGNORED, *ids_of(tokenizer, "mass", "[SEP]"), IGNORED, IGNORED, IGNORED]


def test_captions_are_padded_to_the_longest_of_the_batch(tokenizer):
    assert collated(tokenizer, ["mass", "mass mass mass"])["input_ids"].shape == (2, 5)
    assert collated(tokenizer, ["mass", "mass"])["input_ids"].shape == (2, 3)


@pytest.mark.parametrize("most", [3, 5, 96])
def test_a_long_caption_is_cut_and_keeps_its_end(tokenizer, most):
    ids = collated(tokenizer, ["mass " * 200], max_caption_tokens=most)["input_ids"][0].tolist()
    mass, sep = ids_of(tokenizer, "mass", "[SEP]")
    assert ids == [DEC, *[mass] * (most - 2), sep]


def test_the_words_of_a_prompt_are_given_and_not_learned(tokenizer):
    batch = collated(tokenizer, ["mass", "a cyst"], prompt="a picture of")
    given = ids_of(tokenizer, "a", "picture", "of")
    assert batch["input_ids"][:, :4].tolist() == [[DEC, *given]] * 2
    assert batch["labels"].tolist() == [
        [IGNORED] * 4 + ids_of(tokenizer, "mass", "[SEP]") + [IGNORED],
        [IGNORED] * 4 + ids_of(tokenizer, "a", "cyst", "[SEP]"),
    ]


def test_without_a_prompt_the_first_word_is_learned(tokenizer):
    assert collated(tokenizer, ["mass"])["labels"][0, 1] == tokenizer.convert_tokens_to_ids("mass")


def test_images_alone_give_pixels_alone(tokenizer):
    batch = CaptionCollator(tokenizer, DEC, 96)([{"pixel_values": torch.ones(3, 2, 2), "image_id": "a"}] * 2)
    assert batch.keys() == {"pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 2, 2)


def test_row_numbers_come_along(tokenizer):
    rows = [{"pixel_values": torch.zeros(3, 2, 2), "caption": "mass", "row": row} for row in (7, 3)]
    assert CaptionCollator(tokenizer, DEC, 96)(rows)["row"].tolist() == [7, 3]


def test_cached_features_and_images_travel_under_their_own_keys(tokenizer):
    rows = [
        {"pixel_values": None, "features": torch.full((5, 4), 1.0), "digest": b"a" * 16},
        {"pixel_values": torch.zeros(3, 2, 2), "features": None, "digest": b"b" * 16},
        {"pixel_values": None, "features": torch.full((5, 4), 2.0), "digest": b"c" * 16},
    ]
    batch = CaptionCollator(tokenizer, DEC, 96)(rows)
    assert batch["is_cached"].tolist() == [True, False, True]
    assert batch["features"][:, 0, 0].tolist() == [1.0, 2.0]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)
    assert bytes(batch["digests"][0].numpy()) == b"b" * 16


CUT = {
    "no captions": ([], 3, "", 0.0),
    "blank": ([""], 2, "", 0.0),
    "exactly as long": (["a large mass"], 5, "", 0.0),
    "one too long": (["a large mass"], 4, "", 1.0),
    "one in four": (["mass", "mass", "a mass", "a large solid mass"], 4, "", 0.25),
    "too long with its prompt": (["a large mass"], 7, "a picture of", 1.0),
    "as long as allowed with its prompt": (["a large mass"], 8, "a picture of", 0.0),
}


@pytest.mark.parametrize(("captions", "most", "prompt", "fraction"), CUT.values(), ids=CUT)
def test_the_fraction_of_cut_captions(tokenizer, captions, most, prompt, fraction):
    assert TokenizedCaptions.tokenize(tokenizer, captions, prompt).cut_fraction(most) == fraction


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("most", [5, 96])
def test_statistics_are_those_of_the_batch(tokenizer, prompt, most):
    """Lengths and learned tokens are counted as the collator makes them."""
    captions = ["mass", "a large solid mass", "a cyst", "a a a a a a mass"]
    batch = collated(tokenizer, captions, prompt=prompt, max_caption_tokens=most)
    tokenized = TokenizedCaptions.tokenize(tokenizer, captions, prompt)
    assert [min(length, most) for length in tokenized.lengths] == batch["attention_mask"].sum(1).tolist()
    counts = batch["labels"][batch["labels"] != IGNORED].unique(return_counts=True)[1].double()
    assert tokenized.entropy(most) == pytest.approx(torch.distributions.Categorical(counts).entropy().item())
