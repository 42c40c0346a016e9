"""A data set's rows with their numbers, and the lengths of their captions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from medcap.data.captions import TokenizedCaptions


class CaptionRows(Dataset[dict[str, Any]]):
    """Rows of `rows`, a list or a data set, with their number as "row".

    `rows[length_column]` gives the tokens of each caption: that column where it exists, else computed when asked for.
    """

    def __init__(self, rows: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, length_column: str) -> None:
        self.rows, self.tokenizer, self.prompt, self.length_column = rows, tokenizer, prompt, length_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        """Return row `key`, or the lengths."""
        if key == self.length_column:
            return self.lengths
        return {**self.rows[key], "row": key}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows, read together where the data set can."""
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
        return TokenizedCaptions.tokenize(self.tokenizer, list(captions), self.prompt).lengths
