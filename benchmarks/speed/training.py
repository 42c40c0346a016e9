"""Training: what a step and an epoch cost, how that grows, and how far it is from the least that it could cost."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from peft.helpers import disable_input_dtype_casting

from medcap.data.rocov2 import load_rocov2
from medcap.modeling.blip import load_blip
from medcap.modeling.lora import add_lora
from medcap.modeling.precision import resolve_dtype
from speed.ours import OurLoop
from speed.plain import CAREFUL, CAREFUL_BF16, SEED, PlainLoop, Way

PLAIN: dict[str, tuple[Way, int]] = {  # and how many steps a round takes
    "the seed's way": (SEED, 2),
    "a careful loop": (CAREFUL, 8),
    "a careful loop, bf16 autocast": (CAREFUL_BF16, 8),
}
FIRST, CACHED = "medcap, first epoch", "medcap, cached epoch"
WIDTH, LAYERS, WORDS = 768, 12, 30_524  # of the text decoder, base and large
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image_rows(data: Path) -> datasets.Dataset:
    """The rows of the training split as a plain loop reads them."""
    rows = load_rocov2(data, splits=["train"])["train"].select_columns(["image", "caption"])
    return rows.cast_column("image", datasets.Image(decode=False))


def measure_steps(base: Path, data: Path, out: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of every way, loading included: the mean of each round, the ways in turn."""
    rows, ours = image_rows(data), OurLoop(base, data, out)
    loops = {name: (PlainLoop(base, rows, way), steps) for name, (way, steps) in PLAIN.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*PLAIN, FIRST, CACHED)}
    for loop, _ in loops.values():
        loop.step()
    warm = ours.new_cache()
    ours.epoch(warm)
    ours.epoch(warm)
    for _ in range(rounds):
        for name, (loop, steps) in loops.items():
            seconds[name].append(statistics.mean(loop.steps(steps)))
        cache = ours.new_cache()
        seconds[FIRST].append(statistics.mean(ours.epoch(cache)))
        seconds[CACHED].append(statistics.mean(ours.epoch(cache)))
    return seconds


def run_for_memory(name: str, base: Path, data: Path, out: Path) -> None:
    """A few steps of one way, in a process of its own."""
    if name in PLAIN:
        PlainLoop(base, image_rows(data), PLAIN[name][0]).steps(2)
        return
    ours = OurLoop(base, data, out)
    cache = ours.new_cache()
    ours.epoch(cache)
    if name == CACHED:
        ours.epoch(cache)


class CachedStep:
    """A cached step alone, of captions of one length: forward, backward and optimizer on features at hand."""

    def __init__(self, base: Path) -> None:
        self.dtype = resolve_dtype("auto", DEVICE)
        model, _ = load_blip(str(base), image_size=224, dtype=self.dtype)
        self.model = add_lora(model, targets="query-key", r=8, alpha=16, dropout=0.1).to(DEVICE).train()
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=5e-5, fused=True)

    def seconds(self, rows: int, tokens: int, repeat: int = 7) -> float:
        """The median of `repeat` steps of `rows` images with captions of `tokens` tokens each."""
        features = torch.randn(rows, 197, WIDTH, device=DEVICE, dtype=self.dtype)
        ids = torch.randint(200, WORDS, (rows, tokens), device=DEVICE)
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
    """Floating-point operations that a cached step of BLIP-base must do; those of LoRA (about 1 %) are left out.

    Forward: 14 width^2 a token and layer (self-attention 4, cross-attention's query and output 2, feed-forward 8),
    2 width^2 a patch and layer (cross-attention's key and value), the attentions, and the head at tokens - 1 places.
    Backward: the same from the loss to the first query; features and frozen weights need no gradient.
    """
    text = 2 * rows * tokens * 14 * WIDTH**2 * LAYERS
    pictures = 2 * rows * patches * 2 * WIDTH**2 * LAYERS
    attention = 4 * rows * tokens * (tokens + patches) * WIDTH * LAYERS
    head = 2 * rows * (tokens - 1) * (WIDTH**2 + WIDTH * WORDS)
    not_needed = 2 * rows * tokens * 3 * WIDTH**2  # gradients of the first layer's input
    return 2 * (text + head) + 3 * attention + pictures - not_needed


def least_bytes(rows: int, tokens: int, itemsize: int) -> float:
    """Bytes that a cached step must move: the decoder's weights twice (forward, backward), and the features once."""
    weights = LAYERS * 16 * WIDTH**2 + WIDTH * WORDS
    return itemsize * (2 * weights + rows * 197 * WIDTH)


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product, the median of nine."""
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(_timed(lambda: a @ b) for _ in range(9))


def copy_rate(megabytes: int = 256) -> float:
    """Bytes read and written a second by a large copy, the median of nine."""
    a = torch.randn(megabytes * 2**18, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * a.nbytes / statistics.median(_timed(lambda: b.copy_(a)) for _ in range(9))


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_floor(base: Path) -> dict[str, Any]:
    """A cached step beside the least it could cost, and how it grows with rows and tokens."""
    step = CachedStep(base)
    sizes = [(3, 40), (6, 40), (12, 40), (3, 80), (3, 120), (32, 40)]
    rows = []
    for images, tokens in sizes:
        rate, seconds = matrix_rate(step.dtype), step.seconds(images, tokens)
        rate = (rate + matrix_rate(step.dtype)) / 2  # before and after: the machine is shared
        least = least_operations(images, tokens)
        rows.append({"images": images, "tokens": tokens, "seconds": seconds, "operations": least, "rate": rate})
    bandwidth, itemsize = copy_rate(), step.dtype.itemsize
    return {"dtype": str(step.dtype), "rows": rows, "copy_rate": bandwidth, "bytes": least_bytes(3, 40, itemsize)}
