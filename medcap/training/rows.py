"""The rows of the training data: their numbers and lengths, their order, and errors of reading them."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from medcap.data.captions import TokenizedCaptions


class CaptionRows(Dataset[dict[str, Any]]):
    """Rows of `rows`, a list or a data set, with their number as "row".

    `rows[length_column]` gives the tokens of each caption: that column if it exists, else computed on access.
    """

    def __init__(self, rows: Any, tokenize: Callable[[list[str]], TokenizedCaptions], length_column: str) -> None:
        self.rows, self.tokenize, self.length_column = rows, tokenize, length_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        """Return row `key`, or the lengths."""
        return self.lengths if key == self.length_column else {**self.rows[key], "row": key}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows, read together if the data set can."""
        read = getattr(self.rows, "__getitems__", None)
        rows = read(indices) if read else [self.rows[index] for index in indices]
        return [{**row, "row": index} for row, index in zip(rows, indices, strict=True)]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each caption, prompt and special tokens included."""
        columns = getattr(self.rows, "column_names", ())
        if self.length_column in columns:
            return list(self.rows[self.length_column])
        captions = self.rows["caption"] if columns else [row["caption"] for row in self.rows]
        return self.tokenize(list(captions)).lengths


class LengthSampler(Sampler[int]):
    """Every row once per epoch, in batches of similar length; the order depends on seed and epoch alone.

    Rows are shuffled, cut into at least four blocks of at most 50 batches, and sorted by length within each, as
    transformers' LengthGroupedSampler does. Then the batches are shuffled; transformers leaves each block sorted from
    long to short captions. The batch with the longest caption stays first and shows whether memory suffices.

    Each step divides its loss by its own tokens, so that a token of the shortest quarter of ROCOv2's captions weighs
    4.7 times one of the longest quarter.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """`batch_size`: captions of one optimizer step of all processes."""
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one, resumed ones included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        first, *others = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        short = [others.pop()] if others and len(others[-1]) < self.batch_size else []  # last, so no batch is split
        order = torch.randperm(len(others), generator=generator).tolist()
        return iter([row for batch in [first, *(others[index] for index in order), *short] for row in batch])


class SourceSampler(Sampler[int]):
    """The rows that an epoch draws from each source, in random order; they depend on seed and epoch alone.

    An epoch draws round(weight * n) of the n rows of a source, at least one, from an endless sequence of passes over
    them, each in a new random order, where the epoch before stopped. So a weight of 2 draws every row twice per epoch,
    0.5 draws each half of them in turn, and 1.5 draws no row a second time before all others.
    """

    def __init__(self, sources: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> None:
        """`sources`: the row numbers of each source."""
        self.sources, self.seed, self.epoch = [torch.tensor(rows) for rows in sources], seed, 0
        self.draws = [max(round(weight * len(rows)), 1) for rows, weight in zip(sources, weights, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one, resumed ones included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.draws)

    def __iter__(self) -> Iterator[int]:
        rows = torch.cat([self._drawn(number) for number in range(len(self.sources))])
        return iter(rows[self._permutation(len(rows), f"epoch:{self.epoch}")].tolist())

    def _drawn(self, number: int) -> torch.Tensor:
        rows, draws = self.sources[number], self.draws[number]
        first, start = divmod(self.epoch * draws, len(rows))
        passes = range(first, first + (start + draws - 1) // len(rows) + 1)
        sequence = torch.cat([rows[self._permutation(len(rows), f"{number}:{index}")] for index in passes])
        return sequence[start : start + draws]

    def _permutation(self, n: int, key: str) -> torch.Tensor:
        digest = hashlib.blake2b(f"{self.seed}:{key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return torch.randperm(n, generator=generator)


@contextmanager
def reader_errors() -> Iterator[None]:
    """Raise OSError, in one line, for a data loader worker that was killed or an image that it could not read.

    The message of torch holds the worker's complete traceback.
    """
    try:
        yield
    except Exception as error:
        text, resume = str(error), "then the same command resumes from the last checkpoint"
        sys.stderr.write("\n")  # below the progress bar
        if killed := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
            raise OSError(
                f"data loader worker {killed[1]} was killed; the kernel does that when memory is short: "
                f"lower dataloader_num_workers or the batch size, {resume}"
            ) from error
        if unreadable := re.search(r"image_id .*: cannot read image .*", text):
            raise OSError(f"{unreadable[0]}: it was readable when the run began; fix it, {resume}") from error
        raise
