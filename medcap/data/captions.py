"""Captions: cleaned as text, and made into the ids and labels that BLIP's decoder learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:  # transformers takes seconds to import, and nothing here calls it
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross-entropy leaves out


def clean_caption(text: str) -> str:
    """Return `text` with every run of blanks (line breaks, U+00A0, U+202F, U+2028, ...) as one space, stripped.

    ROCOv2 holds non-breaking spaces by the hundred and one caption of nothing but U+202F; a line break inside a
    caption shifts every caption after it in the PTB tokeniser.
    """
    return " ".join(text.split())


@dataclass(frozen=True)
class CaptionCollator:
    """Make a batch from rows of `pixel_values` (3, H, W), `caption` and perhaps `row` (int) and `digest` (bytes).

    Gives `pixel_values` (B, 3, H, W). Where features (N, width) of some images stood in the place of their pixels:
    `features` (K, N, width) of these, `is_known` (B,) bool, and `pixel_values` and `digests` (B - K, 16) uint8 of the
    others. And of the captions, padded to the longest of the batch (T):

    - `input_ids` (B, T) int64: [DEC], tokens, [SEP], pads. The first id is `first_token_id`, from the model's
      `text_config.bos_token_id`, because `generate` starts from it and the tokenizer's [CLS] is another token.
    - `attention_mask` (B, T) int64: 0 on pads.
    - `labels` (B, T) int64: `input_ids`, but -100 where nothing is to be learned: the first token, the words of
      `prompt`, and the pads, which BLIP does not mask by itself.

    Captions of more than `max_caption_tokens` are cut, and keep their [SEP].
    """

    tokenizer: PreTrainedTokenizerBase
    first_token_id: int
    max_caption_tokens: int
    prompt: str = ""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows`; those without a caption (images alone) give what is there of the images alone."""
        batch = _pictures(rows)
        if "row" in rows[0]:
            batch["row"] = torch.tensor([row["row"] for row in rows])
        if "caption" in rows[0]:
            batch |= self._text([row["caption"] for row in rows])
        return batch

    def _text(self, captions: list[str]) -> dict[str, torch.Tensor]:
        text = self.tokenizer(
            [f"{self.prompt} {caption}" if self.prompt else caption for caption in captions],
            padding=True,
            truncation=True,
            max_length=self.max_caption_tokens,
            return_tensors="pt",
        )
        ids, mask = text["input_ids"], text["attention_mask"]
        ids[:, 0] = self.first_token_id
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : 1 + self._prompt_length()] = IGNORED
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _prompt_length(self) -> int:
        return len(self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]) if self.prompt else 0


def _pictures(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    values = [row["pixel_values"] for row in rows]
    if "digest" not in rows[0]:
        return {"pixel_values": torch.stack(values)}
    is_known = torch.tensor([value.ndim == 2 for value in values])
    batch = {"is_known": is_known}
    if is_known.any():
        batch["features"] = torch.stack([value for value in values if value.ndim == 2])
    if not is_known.all():
        unknown = [row for row in rows if row["pixel_values"].ndim == 3]
        batch["pixel_values"] = torch.stack([row["pixel_values"] for row in unknown])
        batch["digests"] = torch.from_numpy(np.stack([np.frombuffer(row["digest"], np.uint8) for row in unknown]))
    return batch


def caption_lengths(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, [CLS] and [SEP] counted."""
    texts = list(captions)
    return [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []


def cut_fraction(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], max_caption_tokens: int) -> float:
    """Share of captions, 0 to 1, that have more than `max_caption_tokens` tokens, [CLS] and [SEP] counted."""
    lengths = caption_lengths(tokenizer, captions)
    return sum(length > max_caption_tokens for length in lengths) / max(len(lengths), 1)
