"""The order of training: batches of captions of about one length, so that few pads are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthSampler(Sampler[int]):
    """Every row once an epoch, in batches of about one length; the order depends on seed and epoch alone.

    Rows are shuffled, cut into at least four blocks of at most 50 batches, and sorted by length within each, as
    transformers' LengthGroupedSampler does. Then the batches are shuffled: there, each block goes from its long
    captions to its short ones. The batch with the longest caption stays first, where it shows whether memory suffices.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """`batch_size`: of all that one step of the optimizer takes."""
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, resumed ones included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        first, *others = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        short = [others.pop()] if others and len(others[-1]) < self.batch_size else []  # or batches would be torn
        order = torch.randperm(len(others), generator=generator).tolist()
        return iter([row for batch in [first, *(others[at] for at in order), *short] for row in batch])
