"""The order of training: every row once per epoch, captions of similar length together, fixed by seed and epoch.

pytest tests/training/test_rows.py
"""

import itertools
import random

import pytest

from medcap.training.rows import LengthSampler

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
