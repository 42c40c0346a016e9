"""The order of training: every row once per epoch, captions of similar length together, fixed by seed and epoch.

pytest tests/training/test_rows.py
"""

import itertools
import random

import pytest
import torch
from test_trainer import make_trainer
from torch.utils.data import RandomSampler

from medcap.recipe import CaptionTrainingArguments
from medcap.training.rows import LengthSampler

__all__ = ["make_trainer"]  # a fixture
LENGTHS = random.Random(0).choices(range(3, 97), k=403)


def epoch(number=0, seed=0, batch_size=8, lengths=LENGTHS):
    sampler = LengthSampler(lengths, batch_size, seed)
    sampler.set_epoch(number)
    return list(sampler)


def pads(rows, size):
    batches = [[LENGTHS[row] for row in rows[start : start + size]] for start in range(0, len(rows), size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40, 403])
def test_every_row_is_visited_once(count):
    assert sorted(epoch(lengths=LENGTHS[:count])) == list(range(count))


def test_padding_is_less_than_a_quarter_of_that_of_a_random_order():
    shuffled = random.Random(1).sample(range(len(LENGTHS)), len(LENGTHS))
    assert pads(epoch(), 8) < pads(shuffled, 8) / 4


def test_longest_caption_is_first():
    assert LENGTHS[epoch()[0]] == max(LENGTHS)


def test_long_and_short_batches_are_mixed():
    """Batches sorted from long to short would end every block with short captions."""
    means = [sum(LENGTHS[row] for row in epoch()[start : start + 8]) for start in range(8, 400, 8)]
    falls = sum(later <= earlier for earlier, later in itertools.pairwise(means))
    assert 0.3 < falls / (len(means) - 1) < 0.7


def test_order_depends_only_on_seed_and_epoch():
    assert epoch(1) == epoch(1)
    assert len({tuple(order) for order in (epoch(0), epoch(1), epoch(0, seed=1), epoch(1, seed=1))}) == 4


CAPTION_TOKENS = [min(96, max(3, round(random.Random(row).lognormvariate(3.45, 0.62)))) for row in range(2048)]
EPOCHS, STEP = 4, 64  # captions per step


def parts(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def tokens(rows):
    return sum(CAPTION_TOKENS[row] for row in rows)


def token_weights(orders):
    """Return the mean weight of a token in the loss, for each quarter of the captions from short to long.

    A step divides its summed loss by its own tokens, so that a token of a step of few tokens weighs more. The mean
    over all tokens is 1.
    """
    steps = [rows for order in orders for rows in parts(list(order), STEP)]
    weights, per_step = [0.0] * len(CAPTION_TOKENS), len(orders) * sum(CAPTION_TOKENS) / len(steps)
    for rows in steps:
        divisor = tokens(rows)
        for row in rows:  # of all tokens of the caption, mean over the epochs
            weights[row] += CAPTION_TOKENS[row] * per_step / divisor / len(orders)
    quarters = parts(sorted(range(len(weights)), key=CAPTION_TOKENS.__getitem__), len(weights) // 4)
    return [sum(weights[row] for row in rows) / tokens(rows) for rows in quarters]


def test_in_random_order_the_tokens_of_short_and_long_captions_weigh_the_same():
    orders = [RandomSampler(CAPTION_TOKENS, generator=torch.Generator().manual_seed(seed)) for seed in range(EPOCHS)]
    assert token_weights(orders) == pytest.approx([1] * 4, abs=0.03)


def test_grouped_by_length_the_tokens_of_short_captions_weigh_more():
    orders = [epoch(number, batch_size=STEP, lengths=CAPTION_TOKENS) for number in range(EPOCHS)]
    shortest, *_, longest = token_weights(orders)
    assert shortest > 2  # 2.54 and .54 with ROCOv2's validation captions
    assert longest < 0.6


def test_the_default_is_the_random_order_of_the_trainer(make_trainer):
    assert CaptionTrainingArguments("run", use_cpu=True).train_sampling_strategy == "random"
    sampler = make_trainer(train_sampling_strategy="random").get_train_dataloader().batch_sampler.sampler
    assert isinstance(sampler, RandomSampler)
