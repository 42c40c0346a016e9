"""Measure the time of generating captions and of loading images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap.data.images import ImageTransform, image_digest, load_image
from medcap.inference import load_captioner
from medcap.modeling.feature_store import FeatureCache
from speed.plain import ORIGINAL, generate
from speed.training import DEVICE

BATCHED, BATCHED_BF16 = "`generate`, batched", "`generate`, batched, bf16 autocast"
MEDCAP, MEDCAP_FP32 = "medcap", "medcap, fp32"
BATCH_SIZE = 16  # of `generate` and of medcap, whose default on a CPU it is


def test_images(data: Path, count: int) -> list[Image.Image]:
    """Return the first `count` images of the test split."""
    return [load_image(str(path)) for path in sorted((data / "test").glob("*.jpg"))[:count]]


def plain_model(base: Path, size: int) -> tuple[Any, Any]:
    """Load the base with transformers, and its processor for images of `size` x `size` pixels."""
    processor = BlipProcessor.from_pretrained(base)
    processor.image_processor.size = {"height": size, "width": size}
    return BlipForConditionalGeneration.from_pretrained(base).to(DEVICE).eval(), processor


def medcap_captioner(base: Path, precision: str, beams: int = 4) -> Any:
    """Load medcap's captioner with the same settings: 128 tokens including the first."""
    settings = {"num_beams": beams, "max_new_tokens": 127}
    return load_captioner(str(base), image_size=224, generation=settings, precision=precision)


def caption_seconds(captioner: Any, images: list[Image.Image]) -> float:
    """Return the seconds that medcap needs to caption `images`."""
    started = time.perf_counter()
    for start in range(0, len(images), BATCH_SIZE):
        captioner.caption(images[start : start + BATCH_SIZE])
    return time.perf_counter() - started


def measure_generation(base: Path, data: Path, rounds: int) -> dict[str, list[float]]:
    """Return seconds per image of each method in each round: 4 beams, 128 tokens; the methods alternate.

    With random weights no caption ends early: this is the worst case.
    """
    few, many = test_images(data, 3), test_images(data, BATCH_SIZE)
    (model, processor), (_, small) = plain_model(base, 384), plain_model(base, 224)
    fast, exact = medcap_captioner(base, "auto"), medcap_captioner(base, "fp32")
    bf16 = torch.bfloat16
    methods = {
        ORIGINAL: lambda: generate(model, processor, few, 3) / 3,
        BATCHED: lambda: generate(model, small, many, BATCH_SIZE) / BATCH_SIZE,
        BATCHED_BF16: lambda: generate(model, small, many, BATCH_SIZE, dtype=bf16) / BATCH_SIZE,
        MEDCAP_FP32: lambda: caption_seconds(exact, many) / BATCH_SIZE,
        MEDCAP: lambda: caption_seconds(fast, many) / BATCH_SIZE,
    }
    caption_seconds(fast, many[:1])
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            seconds[name].append(method())
    return seconds


def measure_beams(base: Path, data: Path) -> list[dict[str, float]]:
    """Return medcap's seconds per image for several numbers of beams and batch sizes."""
    rows = []
    for beams, images in ((1, 4), (2, 4), (4, 4), (4, 8), (4, 16)):
        captioner, batch = medcap_captioner(base, "auto", beams), test_images(data, images)
        rows.append({"beams": beams, "images": images, "seconds": caption_seconds(captioner, batch) / images})
    return rows


def measure_loading(base: Path, data: Path, out: Path, rounds: int, images: int = 60) -> dict[str, list[float]]:
    """Return seconds per image file of each method: decoded and resized, or its cached features read."""
    paths = [str(path) for path in sorted((data / "train").glob("*.jpg"))[:images]]
    _, processor = plain_model(base, 224)
    cache = FeatureCache(out / "loading", (197, 768), torch.bfloat16)
    digests = [image_digest(path) for path in paths]
    cache.put(digests, torch.randn(len(paths), 197, 768).bfloat16())
    cache.flush()
    uncached = ImageTransform(processor.image_processor)
    cached = ImageTransform(processor.image_processor, cache.get)
    methods: dict[str, Any] = {
        "PIL and BlipProcessor": lambda path: processor(images=load_image(path), return_tensors="pt"),
        "medcap, as bytes": lambda path: uncached({"image": [path]}),
        "medcap, features": lambda path: cached({"image": [path]}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            for path in paths:
                method(path)
            seconds[name].append((time.perf_counter() - started) / len(paths))
    return {name: values[1:] for name, values in seconds.items()}
