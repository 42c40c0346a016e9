"""Batches of chat-template models: prompts with images among their tokens, and captions behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from medcap.data.captions import IGNORED, caption_ids, image_batch, pad_token_id

if TYPE_CHECKING:
    from medcap.modeling.families.vlm import Vlm

SIZES = ((48, 32), (32, 96))  # width and height in pixels of images that are compared


@dataclass
class ChatCollator:
    """Make a batch for `Vlm` from dataset rows, as `medcap.data.captions.CaptionCollator` does for other models.

    The keys of text inputs also exist as "prompt_KEY": without the caption, padded on the left, for generation.
    """

    family: Vlm
    max_caption_tokens: int
    prompt: str = ""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows`; `labels` (B, T) are -100 on prompt and padding."""
        images, text = self._images(rows)
        # first, because accelerate takes the size of a batch from it
        batch = {"row": torch.tensor([row["row"] for row in rows])} if "row" in rows[0] else {}
        batch |= images
        batch |= {f"prompt_{name}": values for name, values in text.items()}
        if "caption" in rows[0]:
            captions, end = [row["caption"] for row in rows], self.family.end_token_id
            batch |= self.of_ids(batch, caption_ids(self.family.tokenizer, captions, "", end, self.room))
        return batch

    @property
    def room(self) -> int:
        """Maximum number of tokens of a caption, end token included."""
        return self.max_caption_tokens

    def _images(self, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the images of a batch and their prompts; of equal prompts only one is processed."""
        family, text = self.family, self.family.prompt_text(self.prompt)
        has_own_sizes = family.has_own_sizes
        images = [row["pixel_values"] for row in rows] if has_own_sizes else [Image.new("RGB", SIZES[0])]
        inputs = family.processor(
            images=[[image] for image in images], text=[text] * len(images), padding=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        shape = inputs["input_ids"].shape
        texts = {name: values for name, values in inputs.items() if values.shape == shape and name != "labels"}
        if has_own_sizes:
            return {name: values for name, values in inputs.items() if name not in {*texts, "labels"}}, texts
        others = {*inputs} - {*texts, "labels", "pixel_values"}  # such as the prompt for the Q-Former of InstructBLIP
        equal = {name: inputs[name].repeat(len(rows), 1) for name in others}
        return {**image_batch(rows), **equal}, {name: values.repeat(len(rows), 1) for name, values in texts.items()}

    def of_ids(self, batch: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the text inputs with tokens behind the prompts of `batch`, padded on the right, and `labels`."""
        family = self.family
        text = {name.removeprefix("prompt_"): batch[name] for name in batch if name.startswith("prompt_")}
        masks = text["attention_mask"].bool()
        width = max(int(mask.sum()) + len(row) for mask, row in zip(masks, rows, strict=True))
        fill = {"input_ids": pad_token_id(family.tokenizer)}
        joined = {name: values.new_full((len(rows), width), fill.get(name, 0)) for name, values in text.items()}
        joined["labels"] = masks.new_full((len(rows), width), IGNORED, dtype=torch.long)
        behind = {"attention_mask": 1, "token_type_ids": family.row.caption_type}
        for number, (mask, row) in enumerate(zip(masks, rows, strict=True)):
            first, last = int(mask.sum()), int(mask.sum()) + len(row)
            for name, values in text.items():
                joined[name][number, :first] = values[number][mask]
                joined[name][number, first:last] = torch.tensor(row) if name == "input_ids" else behind.get(name, 0)
            joined["labels"][number, first:last] = torch.tensor(row)
        return joined
