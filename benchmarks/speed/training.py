"""Measure the time of training steps and compare it with the operations that a step requires."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from peft.helpers import disable_input_dtype_casting

from medcap.data.load import load_data
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.modeling.precision import resolve_dtype
from speed.ours import MedcapLoop
from speed.plain import (
    ORIGINAL,
    ORIGINAL_SETUP,
    REFERENCE,
    REFERENCE_BF16_SETUP,
    REFERENCE_SETUP,
    PlainLoop,
    Setup,
)

PLAIN: dict[str, tuple[Setup, int]] = {  # setup, steps per round
    ORIGINAL: (ORIGINAL_SETUP, 2),
    REFERENCE: (REFERENCE_SETUP, 8),
    f"{REFERENCE}, bf16 autocast": (REFERENCE_BF16_SETUP, 8),
}
FIRST, CACHED = "medcap, first epoch", "medcap, cached epoch"
WIDTH, LAYERS, VOCAB_SIZE = 768, 12, 30_524  # of the text decoder, base and large
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image_rows(data: Path) -> datasets.Dataset:
    """Return the rows of the training split for a PlainLoop."""
    rows = load_data(data, splits=["train"])["train"].select_columns(["image", "caption"])
    return rows.cast_column("image", datasets.Image(decode=False))


def measure_steps(base: Path, data: Path, out: Path, rounds: int) -> dict[str, list[float]]:
    """Return the mean seconds per step of each method in each round; the methods alternate."""
    rows, medcap_loop = image_rows(data), MedcapLoop(base, data, out)
    loops = {name: (PlainLoop(base, rows, setup), steps) for name, (setup, steps) in PLAIN.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*PLAIN, FIRST, CACHED)}
    for loop, _ in loops.values():
        loop.step()
    warmup = medcap_loop.new_cache()
    medcap_loop.epoch(warmup)
    medcap_loop.epoch(warmup)
    for _ in range(rounds):
        for name, (loop, steps) in loops.items():
            seconds[name].append(statistics.mean(loop.steps(steps)))
        cache = medcap_loop.new_cache()
        seconds[FIRST].append(statistics.mean(medcap_loop.epoch(cache)))
        seconds[CACHED].append(statistics.mean(medcap_loop.epoch(cache)))
    return seconds


def run_for_memory(name: str, base: Path, data: Path, out: Path) -> None:
    """Run a few steps of one method; called in a process of its own."""
    if name in PLAIN:
        PlainLoop(base, image_rows(data), PLAIN[name][0]).steps(2)
        return
    medcap_loop = MedcapLoop(base, data, out)
    cache = medcap_loop.new_cache()
    medcap_loop.epoch(cache)
    if name == CACHED:
        medcap_loop.epoch(cache)


class CachedStep:
    """A training step on features in memory: forward, backward and optimizer, captions of one length."""

    def __init__(self, base: Path) -> None:
        self.dtype = resolve_dtype("auto", DEVICE)
        model, _ = load_base(str(base), image_size=224, dtype=self.dtype)
        self.model = add_lora(model, targets="query-key", r=8, alpha=16, dropout=0.1).to(DEVICE).train()
        trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=5e-5, fused=True)

    def seconds(self, rows: int, tokens: int, repeat: int = 7) -> float:
        """Return the median seconds of `repeat` steps of `rows` images with captions of `tokens` tokens."""
        features = torch.randn(rows, 197, WIDTH, device=DEVICE, dtype=self.dtype)
        ids = torch.randint(200, VOCAB_SIZE, (rows, tokens), device=DEVICE)
        labels = ids.clone()
        labels[:, 0] = -100
        batch = {"pixel_values": features, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return statistics.median([self._step(batch) for _ in range(repeat + 2)][2:])

    def _step(self, batch: dict[str, Any]) -> float:
        started = time.perf_counter()
        autocast = torch.autocast(DEVICE, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, disable_input_dtype_casting(self.model):
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def least_operations(rows: int, tokens: int, patches: int = 197) -> float:
    """Return the floating-point operations that a cached step of BLIP-base requires, without LoRA (about 1 %).

    Forward: 14 width^2 per token and layer (self-attention 4, query and output of cross-attention 2, feed-forward 8),
    2 width^2 per patch and layer (key and value of cross-attention), the attention products, and the head at
    tokens - 1 positions. Backward: the same down to the first query; features and frozen weights need no gradient.
    """
    text = 2 * rows * tokens * 14 * WIDTH**2 * LAYERS
    image = 2 * rows * patches * 2 * WIDTH**2 * LAYERS
    attention = 4 * rows * tokens * (tokens + patches) * WIDTH * LAYERS
    head = 2 * rows * (tokens - 1) * (WIDTH**2 + WIDTH * VOCAB_SIZE)
    unneeded = 2 * rows * tokens * 3 * WIDTH**2  # gradients with respect to the input of the first layer
    return 2 * (text + head) + 3 * attention + image - unneeded


def least_bytes(rows: int, tokens: int, itemsize: int) -> float:
    """Return the bytes that a cached step transfers: the decoder's weights twice and the features once."""
    weights = LAYERS * 16 * WIDTH**2 + WIDTH * VOCAB_SIZE
    return itemsize * (2 * weights + rows * 197 * WIDTH)


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return the median floating-point operations per second of nine large matrix products."""
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(_timed(lambda: a @ b) for _ in range(9))


def copy_rate(megabytes: int = 256) -> float:
    """Return the median bytes read and written per second in nine large copies."""
    a = torch.randn(megabytes * 2**18, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * a.nbytes / statistics.median(_timed(lambda: b.copy_(a)) for _ in range(9))


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_peak(base: Path) -> dict[str, Any]:
    """Return the time of cached steps of several sizes, their operations, and the peak rates of the machine."""
    step = CachedStep(base)
    sizes = [(3, 40), (6, 40), (12, 40), (3, 80), (3, 120), (32, 40)]
    rows = []
    for images, tokens in sizes:
        rate, seconds = matrix_rate(step.dtype), step.seconds(images, tokens)
        rate = (rate + matrix_rate(step.dtype)) / 2  # before and after, because the machine may be shared
        operations = least_operations(images, tokens)
        rows.append({"images": images, "tokens": tokens, "seconds": seconds, "operations": operations, "rate": rate})
    bandwidth, itemsize = copy_rate(), step.dtype.itemsize
    return {"dtype": str(step.dtype), "rows": rows, "copy_rate": bandwidth, "bytes": least_bytes(3, 40, itemsize)}
