"""Captions become input ids and labels; padding and prompts are not labels."""

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
    "empty": ("", ""),
    "spaces only": (" \t\r\n", ""),
    "narrow no-break space only": ("\u202f", ""),
    "unchanged": ("Chest X-ray.", "Chest X-ray."),
    "leading and trailing spaces": ("\n A mass. \u00a0", "A mass."),
    "line break": ("A\r\nmass", "A mass"),
    "Unicode spaces": ("3\u00a05\u202fcm\u2009by\u20034\u2028cm", "3 5 cm by 4 cm"),
    "runs of spaces": ("a  \n\n  b", "a b"),
}


@pytest.mark.parametrize(("text", "expected"), CLEANED.values(), ids=CLEANED)
def test_captions_are_cleaned(text, expected):
    assert clean_caption(text) == expected
    assert clean_caption(expected) == expected


def test_caption_becomes_dec_tokens_sep(tokenizer):
    batch = collated(tokenizer, ["A large mass"])
    words = ids_of(tokenizer, "a", "large", "mass", "[SEP]")
    assert batch["input_ids"].tolist() == [[DEC, *words]]
    assert batch["labels"].tolist() == [[IGNORED, *words]]
    assert batch["attention_mask"].tolist() == [[1] * 5]
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "pixel_values": torch.float32, "input_ids": torch.int64, "attention_mask": torch.int64, "labels": torch.int64,
    }  # fmt: skip


def test_first_token_is_dec_and_not_cls(tokenizer):
    ids = collated(tokenizer, ["", "a mass", "mass " * 200])["input_ids"]
    assert ids[:, 0].tolist() == [DEC] * 3
    assert tokenizer.cls_token_id not in ids.tolist()[0]


def test_blank_caption_has_only_sep(tokenizer):
    sep = tokenizer.sep_token_id
    batch = collated(tokenizer, [""])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[DEC, sep]], [[IGNORED, sep]])


def test_padding_is_not_a_label(tokenizer):
    batch = collated(tokenizer, ["mass", "a large solid mass"])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_token_id] * 3
    assert batch["labels"][0].tolist() == [IGNORED, *ids_of(tokenizer, "mass", "[SEP]"), IGNORED, IGNORED, IGNORED]


def test_captions_are_padded_to_the_longest_of_the_batch(tokenizer):
    assert collated(tokenizer, ["mass", "mass mass mass"])["input_ids"].shape == (2, 5)
    assert collated(tokenizer, ["mass", "mass"])["input_ids"].shape == (2, 3)


@pytest.mark.parametrize("max_tokens", [3, 5, 96])
def test_long_caption_is_truncated_and_keeps_sep(tokenizer, max_tokens):
    ids = collated(tokenizer, ["mass " * 200], max_caption_tokens=max_tokens)["input_ids"][0].tolist()
    mass, sep = ids_of(tokenizer, "mass", "[SEP]")
    assert ids == [DEC, *[mass] * (max_tokens - 2), sep]


def test_prompt_is_not_a_label(tokenizer):
    batch = collated(tokenizer, ["mass", "a cyst"], prompt="a picture of")
    prompt = ids_of(tokenizer, "a", "picture", "of")
    assert batch["input_ids"][:, :4].tolist() == [[DEC, *prompt]] * 2
    assert batch["labels"].tolist() == [
        [IGNORED] * 4 + ids_of(tokenizer, "mass", "[SEP]") + [IGNORED],
        [IGNORED] * 4 + ids_of(tokenizer, "a", "cyst", "[SEP]"),
    ]


def test_first_token_without_prompt_is_a_label(tokenizer):
    assert collated(tokenizer, ["mass"])["labels"][0, 1] == tokenizer.convert_tokens_to_ids("mass")


def test_rows_without_captions_have_pixel_values_only(tokenizer):
    batch = CaptionCollator(tokenizer, DEC, 96)([{"pixel_values": torch.ones(3, 2, 2), "image_id": "a"}] * 2)
    assert batch.keys() == {"pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 2, 2)


def test_row_numbers_are_collated(tokenizer):
    rows = [{"pixel_values": torch.zeros(3, 2, 2), "caption": "mass", "row": row} for row in (7, 3)]
    assert CaptionCollator(tokenizer, DEC, 96)(rows)["row"].tolist() == [7, 3]


def test_features_and_pixel_values_have_their_own_keys(tokenizer):
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


TRUNCATED = {
    "no captions": ([], 3, "", 0.0),
    "blank": ([""], 2, "", 0.0),
    "as long as allowed": (["a large mass"], 5, "", 0.0),
    "too long": (["a large mass"], 4, "", 1.0),
    "one in four": (["mass", "mass", "a mass", "a large solid mass"], 4, "", 0.25),
    "too long with its prompt": (["a large mass"], 7, "a picture of", 1.0),
    "as long as allowed with its prompt": (["a large mass"], 8, "a picture of", 0.0),
}


@pytest.mark.parametrize(("captions", "max_tokens", "prompt", "fraction"), TRUNCATED.values(), ids=TRUNCATED)
def test_cut_fraction(tokenizer, captions, max_tokens, prompt, fraction):
    assert TokenizedCaptions.tokenize(tokenizer, captions, prompt).cut_fraction(max_tokens) == fraction


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("max_tokens", [5, 96])
def test_lengths_and_entropy_equal_those_of_the_batch(tokenizer, prompt, max_tokens):
    captions = ["mass", "a large solid mass", "a cyst", "a a a a a a mass"]
    batch = collated(tokenizer, captions, prompt=prompt, max_caption_tokens=max_tokens)
    tokenized = TokenizedCaptions.tokenize(tokenizer, captions, prompt)
    assert [min(length, max_tokens) for length in tokenized.lengths] == batch["attention_mask"].sum(1).tolist()
    counts = batch["labels"][batch["labels"] != IGNORED].unique(return_counts=True)[1].double()
    assert tokenized.entropy(max_tokens) == pytest.approx(torch.distributions.Categorical(counts).entropy().item())
