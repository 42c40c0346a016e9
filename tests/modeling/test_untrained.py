"""Untrained input embeddings of the captions' tokens are found and named. pytest tests/modeling/test_untrained.py"""

import csv

import numpy as np
import pytest
import torch

from medcap.data.captions import TokenizedCaptions
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.modeling.untrained import untrained_rows, untrained_warning
from medcap.phantom import TINY_BASE
from medcap.phantom.dataset import write_phantom
from medcap.recipe import read_recipe
from medcap.training.setup import tokenize_captions

RADIOLOGY = [
    "Bilateral ground-glass opacities in a patient with COVID-19 pneumonia.",
    "Chest CT demonstrating a mass in the left lower lobe.",
]


@pytest.fixture(scope="module")
def shipped():
    """The frozen base of the package; read-only."""
    return frozen(*load_base(str(TINY_BASE)))


def frozen(model, processor):
    """Return the family of a base whose weights are frozen, as under an adapter."""
    return family_of(model.requires_grad_(False), processor)


def all_untrained_rows(table):
    return untrained_rows(table, torch.arange(len(table)))


def random_table(rows=2000, width=32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def test_rows_that_never_moved_apart_are_untrained():
    """The first half has one direction with the noise of an initialization, as tokens that never occur in training."""
    table = random_table()
    table[:1000] = torch.ones(32) + 0.05 * table[:1000]
    assert all_untrained_rows(table).tolist() == [True] * 1000 + [False] * 1000
    assert all_untrained_rows(table.bfloat16()).tolist() == [True] * 1000 + [False] * 1000


@pytest.mark.parametrize("common", [0, 1])
@pytest.mark.parametrize("rows", [3, 200, 2000])
def test_rows_of_a_random_table_are_not(rows, common):
    """Neither are those of trained tables, whose rows have a common part."""
    assert not all_untrained_rows(random_table(rows) + common).any()


def test_a_few_equal_rows_are_not():
    """SmolLM2 has 42 such rows of 49,152."""
    table = random_table()
    table[:15] = 1
    table[100] = 0
    assert not all_untrained_rows(table).any()


def test_words_unknown_to_the_shipped_base_are_counted(shipped):
    line = untrained_warning(shipped.base, shipped.tokenized(RADIOLOGY))
    tokens = sum(len(caption_ids) for caption_ids in shipped.tokenized(RADIOLOGY).ids)
    assert f" of {tokens:,}, " in line
    assert line.endswith("train them with lora_modules_to_save: [word_embeddings]")


def test_no_warning_for_phantoms_or_a_random_base(shipped, blip, tmp_path):
    write_phantom(tmp_path / "data", train=200, valid=1, test=1, seed=0)
    with (tmp_path / "data" / "train_captions.csv").open(encoding="utf-8") as file:
        captions = [row["Caption"] for row in csv.DictReader(file)]
    assert untrained_warning(shipped.base, shipped.tokenized(captions)) == ""
    random = frozen(*blip)
    assert untrained_warning(random.base, random.tokenized(RADIOLOGY)) == ""


def test_the_named_module_ends_the_warning():
    family = frozen(*load_base(str(TINY_BASE)))
    base, captions = family.base, family.tokenized(RADIOLOGY)
    name = untrained_warning(base, captions).rpartition("[")[2].removesuffix("]")
    add_lora(base, targets="attention", r=2, alpha=2, dropout=0.0, options={"modules_to_save": [name]})
    assert untrained_warning(base, captions) == ""


def test_every_untrained_token_is_counted_once_per_use(shipped):
    bad = int(all_untrained_rows(shipped.base.get_input_embeddings().weight).nonzero()[0])
    good = shipped.end_token_id
    captions = TokenizedCaptions([np.array([bad, bad, good], np.int32), np.array([good], np.int32)], 1)
    assert untrained_warning(shipped.base, captions).startswith(
        "50% of the tokens of the training captions (2 of 4, 1 different ones) have input embeddings that look untra"
    )


def test_a_run_warns_once_at_its_start(shipped, recipe_file, caplog):
    data, recipe = {"train": {"caption": RADIOLOGY}}, read_recipe(["--config", recipe_file()])
    captions = tokenize_captions(recipe, data, shipped)
    assert [line.message for line in caplog.records] == [untrained_warning(shipped.base, captions)]
