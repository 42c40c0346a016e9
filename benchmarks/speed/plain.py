"""Training loops and generation that medcap is compared with.

ORIGINAL is what the original project does: 384 px, every caption padded to 512 tokens, padding included in the loss,
batch size 3, no cached features. (Its errors in scaling, first token and LoRA targets cost no time and are left out.)
REFERENCE follows the Hugging Face documentation: 224 px, padding to the longest caption of the batch, masked labels,
LoRA on query and key of self- and cross-attention, fused AdamW, no gradient for the vision encoder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap.data.images import load_image
from medcap.modeling.families.blip import TARGETS

BATCH_SIZE = 3
ORIGINAL, REFERENCE = "original project", "reference loop"


@dataclass(frozen=True)
class Setup:
    """How a loop prepares its batches. `pad_to`: caption length in tokens; None: the longest caption of the batch."""

    image_size: int
    pad_to: int | None
    dtype: torch.dtype = torch.float32


ORIGINAL_SETUP = Setup(image_size=384, pad_to=512)
REFERENCE_SETUP = Setup(image_size=224, pad_to=None)
REFERENCE_BF16_SETUP = Setup(image_size=224, pad_to=None, dtype=torch.bfloat16)


class PlainLoop:
    """A training loop; each step is timed, including loading."""

    def __init__(self, base: Path, rows: Dataset, setup: Setup, batch_size: int = BATCH_SIZE) -> None:
        self.setup, self.device = setup, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.processor = BlipProcessor.from_pretrained(base)
        self.processor.image_processor.size = {"height": setup.image_size, "width": setup.image_size}
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=TARGETS["query-key"])
        self.model = get_peft_model(BlipForConditionalGeneration.from_pretrained(base), config).to(self.device).train()
        trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=5e-5, fused=setup is not ORIGINAL_SETUP)
        self.loader = DataLoader(rows, batch_size, shuffle=True, collate_fn=self.collate, drop_last=True)  # type: ignore[arg-type]
        self.batches = self.endless()

    def endless(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self.loader

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padding = (
            {"padding": "max_length", "max_length": self.setup.pad_to} if self.setup.pad_to else {"padding": True}
        )
        if not self.setup.pad_to:
            padding["max_length"] = 128
        images, captions = [load_image(row["image"]) for row in rows], [row["caption"] for row in rows]
        batch = self.processor(images=images, text=captions, truncation=True, return_tensors="pt", **padding)
        labels = batch["input_ids"].clone()
        if not self.setup.pad_to:
            labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}

    def steps(self, count: int) -> list[float]:
        """Return the seconds of each of the next `count` steps."""
        return [self.step() for _ in range(count)]

    def step(self) -> float:
        started = time.perf_counter()
        batch = {name: value.to(self.device) for name, value in next(self.batches).items()}
        with torch.autocast(self.device.type, self.setup.dtype, enabled=self.setup.dtype != torch.float32):
            loss = self.model(**batch, interpolate_pos_encoding=True).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def generate(
    model: Any, processor: Any, images: list[Any], batch_size: int, max_length: int = 128, dtype: Any = torch.float32
) -> float:
    """Return the seconds that transformers' `generate` needs to caption `images` with 4 beams."""
    device = model.device
    started = time.perf_counter()
    for start in range(0, len(images), batch_size):
        pixels = processor(images=images[start : start + batch_size], return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model.generate(pixel_values=pixels, num_beams=4, max_length=max_length, interpolate_pos_encoding=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
