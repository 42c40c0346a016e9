"""Captions: cleaning, tokenization, and batches with the ids and labels of BLIP's text decoder."""

from __future__ import annotations

from collections.abc import Sequence
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
        batch = _images(rows)
        if "row" in rows[0]:
            batch["row"] = torch.tensor([row["row"] for row in rows])
        if "caption" in rows[0]:
            batch |= self._text([row["caption"] for row in rows])
        return batch

    def _text(self, captions: list[str]) -> dict[str, torch.Tensor]:
        text = self.tokenizer(
            with_prompt(captions, self.prompt),
            padding=True,
            truncation=True,
            max_length=self.max_caption_tokens,
            return_tensors="pt",
        )
        ids, mask = text["input_ids"], text["attention_mask"]
        ids[:, 0] = self.first_token_id
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : 1 + prompt_length(self.tokenizer, self.prompt)] = IGNORED
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _images(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
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
    """The captions of a split as tokens: [CLS], `prompt_length` tokens of the prompt, the caption, [SEP]."""

    ids: list[np.ndarray]  # int32, one array per caption
    prompt_length: int

    @classmethod
    def tokenize(
        cls, tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], prompt: str = ""
    ) -> TokenizedCaptions:
        """Tokenize `captions` with `prompt` before each, without truncation."""
        texts = with_prompt(captions, prompt)
        rows = tokenizer(texts)["input_ids"] if texts else []
        return cls([np.array(row, np.int32) for row in rows], prompt_length(tokenizer, prompt))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each caption, the prompt, [CLS] and [SEP] included."""
        return [len(row) for row in self.ids]

    def cut_fraction(self, max_caption_tokens: int) -> float:
        """Return the fraction of captions, 0 to 1, that have more than `max_caption_tokens` tokens."""
        return sum(length > max_caption_tokens for length in self.lengths) / max(len(self.ids), 1)

    def entropy(self, max_caption_tokens: int) -> float:
        """Return the entropy in nats of the labels, with captions truncated to `max_caption_tokens`.

        It is the lowest loss of a model that knows only token frequencies (Shannon, 1948, section 6). [SEP] is a
        label; the first token and the prompt are not.
        """
        first = 1 + self.prompt_length
        labels = [row[first:] for row in self.ids if len(row) <= max_caption_tokens]
        for row in self.ids:
            if len(row) > max_caption_tokens:  # truncation keeps [SEP]
                labels += [row[first : max_caption_tokens - 1], row[-1:]]
        counts = np.unique(np.concatenate(labels), return_counts=True)[1]
        fractions = counts / counts.sum()
        return float(-(fractions * np.log(fractions)).sum())


def with_prompt(captions: Sequence[str], prompt: str) -> list[str]:
    """Return the captions with `prompt` before each; unchanged if `prompt` is empty."""
    return [f"{prompt} {caption}" for caption in captions] if prompt else list(captions)


def prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of tokens of `prompt` without special tokens."""
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0
