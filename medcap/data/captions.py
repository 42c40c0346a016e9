"""Captions: cleaning, tokenization, and batches with the ids and labels of a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross-entropy ignores


def clean_caption(text: str) -> str:
    """Return stripped `text` with one space for each run of white space (line breaks, U+00A0, U+202F, ...).

    ROCOv2 has hundreds of non-breaking spaces, and one caption that is only U+202F. In the PTB tokenizer a line break
    inside a caption shifts all later captions.
    """
    return " ".join(text.split())


@dataclass(frozen=True)
class CaptionCollator:
    """Make a batch from dataset rows.

    A row has `pixel_values` (3, H, W), or None and `features` (N, width) instead; optionally `digest` (bytes),
    `caption` (str) and `row` (int, its number in the data set).

    Args:
        tokenizer: The processor's tokenizer.
        first_token_id: First id of every caption, from `text_config.bos_token_id`. `generate` starts from it; the
            tokenizer's [CLS] is another token.
        max_caption_tokens: Longer captions are cut and keep their [SEP]. Special tokens and the prompt count.
        prompt: Text before every caption.
    """

    tokenizer: PreTrainedTokenizerBase
    first_token_id: int
    max_caption_tokens: int
    prompt: str = ""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows`.

        Returns:
            Images: `pixel_values` (K, 3, H, W) of the rows without features. Where rows have a digest, also
            `is_cached` (B,) bool, `features` (B - K, N, width) and `digests` (K, 16) uint8; empty ones are left out.
            Captions, padded to the longest of the batch: `input_ids` and `attention_mask` (B, T) int64, and `labels`
            (B, T) int64, -100 for the first token, the prompt and the padding.
            `row` (B,) int64.
        """
        batch = image_batch(rows)
        if "row" in rows[0]:
            batch["row"] = torch.tensor([row["row"] for row in rows])
        if "caption" in rows[0]:
            batch |= self.text([row["caption"] for row in rows])
        return batch

    def text(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` of captions."""
        tokenizer = self.tokenizer
        room = self.max_caption_tokens - 1 - prompt_length(tokenizer, self.prompt)
        return self.of_ids({}, caption_ids(tokenizer, captions, self.prompt, end_token_id(tokenizer), room))

    def of_ids(self, batch: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return `text` for the tokens of captions, end tokens included; `batch` holds the prompts of other models."""
        tokenizer, start = self.tokenizer, [self.first_token_id, *prompt_ids(self.tokenizer, self.prompt)]
        lengths = torch.tensor([len(start) + len(row) for row in rows])
        width = int(lengths.max())
        padding = [pad_token_id(tokenizer)] * width
        ids = torch.tensor([[*start, *row, *padding][:width] for row in rows])
        mask = (torch.arange(width) < lengths[:, None]).long()
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : len(start)] = IGNORED
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def image_batch(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the images of dataset rows, as described in `CaptionCollator`."""
    uncached = [row for row in rows if row.get("features") is None]
    cached = [row["features"] for row in rows if row.get("features") is not None]
    batch = {}
    if uncached:
        batch["pixel_values"] = torch.stack([row["pixel_values"] for row in uncached])
    if cached:
        batch["features"] = torch.stack(cached)
    if "digest" in rows[0]:
        batch["is_cached"] = torch.tensor([row["features"] is not None for row in rows])
        if uncached:
            digests = np.stack([np.frombuffer(row["digest"], np.uint8) for row in uncached])
            batch["digests"] = torch.from_numpy(digests)
    return batch


@dataclass(frozen=True)
class TokenizedCaptions:
    """The captions of a split as tokens with the end token, behind `start_length` tokens: the first and the prompt."""

    ids: list[np.ndarray]  # int32, one array per caption
    start_length: int

    @classmethod
    def tokenize(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        captions: Sequence[str],
        prompt: str = "",
        start_length: int | None = None,
    ) -> TokenizedCaptions:
        """Tokenize `captions` behind `prompt`, without truncation; `start_length` is 1 + the prompt's by default."""
        rows = caption_ids(tokenizer, captions, prompt, end_token_id(tokenizer))
        start = 1 + prompt_length(tokenizer, prompt) if start_length is None else start_length
        return cls([np.array(row, np.int32) for row in rows], start)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each caption, first token, prompt and end token included."""
        return [self.start_length + len(row) for row in self.ids]

    def cut_fraction(self, max_caption_tokens: int) -> float:
        """Return the fraction of captions, 0 to 1, that have more than `max_caption_tokens` tokens."""
        return sum(length > max_caption_tokens for length in self.lengths) / max(len(self.ids), 1)

    def entropy(self, max_caption_tokens: int) -> float:
        """Return the entropy in nats of the labels, with captions truncated to `max_caption_tokens`.

        It is the lowest loss of a model that knows only token frequencies (Shannon, 1948, section 6). The end token is
        a label; the first token and the prompt are not.
        """
        most = max_caption_tokens - self.start_length
        labels = [row[:most] for row in self.ids if len(row) <= most]
        for row in self.ids:
            if len(row) > most:  # truncation keeps the end token
                labels += [row[: most - 1], row[-1:]]
        counts = np.unique(np.concatenate(labels), return_counts=True)[1]
        fractions = counts / counts.sum()
        return float(-(fractions * np.log(fractions)).sum())


def with_prompt(captions: Sequence[str], prompt: str) -> list[str]:
    """Return the captions with `prompt` before each; unchanged if `prompt` is empty."""
    return [f"{prompt} {caption}" for caption in captions] if prompt else list(captions)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of `prompt` without special tokens."""
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else []


def prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of tokens of `prompt` without special tokens."""
    return len(prompt_ids(tokenizer, prompt))


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends a caption: [SEP], or the tokenizer's end token, such as <|endoftext|>."""
    ids = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    return int(next(token for token in ids if token is not None))


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills batches: the tokenizer's, or the end token if it has none, as GPT-2's."""
    return end_token_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def caption_ids(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], prompt: str, end: int, most: int | None = None
) -> list[list[int]]:
    """Return the tokens of captions behind `prompt`, without it, and `end`; cut to at most `most` with `end`."""
    texts, start = with_prompt(captions, prompt), prompt_length(tokenizer, prompt)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [[*row[start : None if most is None else start + most - 1], end] for row in rows]
