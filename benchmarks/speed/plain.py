"""The ways that medcap is compared with, written as the plain loops that they are.

"the seed's way" is what the replaced project did: 384 px, every caption padded to 512 tokens, pads scored, batches of
3, nothing kept. (Its mistakes of scale, first token and targets cost no time and are left out.) "a careful loop" is
what a careful reader of the Hugging Face documentation writes: 224 px, padding to the longest of the batch, masked
labels, LoRA on query and key of both attentions, fused AdamW, no gradient for the tower.
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
from medcap.modeling.lora import TARGETS

BATCH = 3


@dataclass(frozen=True)
class Way:
    """How a plain loop prepares its batches. `pad_to` None: the longest caption of the batch."""

    image_size: int
    pad_to: int | None
    dtype: torch.dtype = torch.float32


SEED = Way(image_size=384, pad_to=512)
CAREFUL = Way(image_size=224, pad_to=None)
CAREFUL_BF16 = Way(image_size=224, pad_to=None, dtype=torch.bfloat16)


class PlainLoop:
    """A training loop that can be gone on with: `steps(n)` are the seconds of the next n, loading included."""

    def __init__(self, base: Path, rows: Dataset, way: Way, batch_size: int = BATCH) -> None:
        self.way, self.device = way, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.processor = BlipProcessor.from_pretrained(base)
        self.processor.image_processor.size = {"height": way.image_size, "width": way.image_size}
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=TARGETS["query-key"])
        self.model = get_peft_model(BlipForConditionalGeneration.from_pretrained(base), config).to(self.device).train()
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=5e-5, fused=way is not SEED)
        self.loader = DataLoader(rows, batch_size, shuffle=True, collate_fn=self.collate, drop_last=True)  # type: ignore[arg-type]
        self.batches = self.endless()

    def endless(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self.loader

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padding = {"padding": "max_length", "max_length": self.way.pad_to} if self.way.pad_to else {"padding": True}
        if not self.way.pad_to:
            padding["max_length"] = 128
        images, captions = [load_image(row["image"]) for row in rows], [row["caption"] for row in rows]
        batch = self.processor(images=images, text=captions, truncation=True, return_tensors="pt", **padding)
        labels = batch["input_ids"].clone()
        if not self.way.pad_to:
            labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]

    def step(self) -> float:
        started = time.perf_counter()
        batch = {name: value.to(self.device) for name, value in next(self.batches).items()}
        with torch.autocast(self.device.type, self.way.dtype, enabled=self.way.dtype != torch.float32):
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
    """Seconds to caption `images` with transformers' `generate`, 4 beams, `batch_size` at a time."""
    device = model.device
    started = time.perf_counter()
    for start in range(0, len(images), batch_size):
        pixels = processor(images=images[start : start + batch_size], return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model.generate(pixel_values=pixels, num_beams=4, max_length=max_length, interpolate_pos_encoding=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
