"""Generation and loading: what a caption costs, and what a picture costs before anything is computed on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap.data.images import ImageTransform, image_digest, load_image
from medcap.inference import load_captioner
from medcap.modeling.feature_cache import FeatureCache
from speed.plain import generate
from speed.training import DEVICE

SEEDS_LOOP, BATCHED, BATCHED_BF16 = "the seed's loop", "`generate`, batched", "`generate`, batched, bf16 autocast"
MEDCAP, MEDCAP_FP32 = "medcap", "medcap, fp32"
AT_ONCE = 16  # images in a batch of `generate` and of medcap, which takes as many by itself on a CPU


def pictures(data: Path, count: int) -> list[Image.Image]:
    """The first `count` pictures of the test split."""
    return [load_image(str(path)) for path in sorted((data / "test").glob("*.jpg"))[:count]]


def plain_model(base: Path, size: int) -> tuple[Any, Any]:
    """The base as transformers loads it, and its processor for `size` pixels a side."""
    processor = BlipProcessor.from_pretrained(base)
    processor.image_processor.size = {"height": size, "width": size}
    return BlipForConditionalGeneration.from_pretrained(base).to(DEVICE).eval(), processor


def medcaps(base: Path, precision: str, beams: int = 4) -> Any:
    """Medcap's captioner with the same settings: 128 ids with the first."""
    settings = {"num_beams": beams, "max_new_tokens": 127}
    return load_captioner(str(base), image_size=224, generation=settings, precision=precision)


def caption_seconds(captioner: Any, images: list[Image.Image]) -> float:
    """Seconds to caption `images` by medcap, AT_ONCE at a time."""
    started = time.perf_counter()
    for start in range(0, len(images), AT_ONCE):
        captioner.caption(images[start : start + AT_ONCE])
    return time.perf_counter() - started


def measure_generation(base: Path, data: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds an image, beams 4, at most 128 ids; the ways in turn. Random weights never end early: the worst case."""
    few, many = pictures(data, 3), pictures(data, AT_ONCE)
    (model, processor), (_, small) = plain_model(base, 384), plain_model(base, 224)
    fast, exact = medcaps(base, "auto"), medcaps(base, "fp32")
    bf16 = torch.bfloat16
    ways = {
        SEEDS_LOOP: lambda: generate(model, processor, few, 3) / 3,
        BATCHED: lambda: generate(model, small, many, AT_ONCE) / AT_ONCE,
        BATCHED_BF16: lambda: generate(model, small, many, AT_ONCE, dtype=bf16) / AT_ONCE,
        MEDCAP_FP32: lambda: caption_seconds(exact, many) / AT_ONCE,
        MEDCAP: lambda: caption_seconds(fast, many) / AT_ONCE,
    }
    caption_seconds(fast, many[:1])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def measure_beams(base: Path, data: Path) -> list[dict[str, float]]:
    """How medcap's seconds an image grow with beams and with images at a time."""
    rows = []
    for beams, images in ((1, 4), (2, 4), (4, 4), (4, 8), (4, 16)):
        captioner, some = medcaps(base, "auto", beams), pictures(data, images)
        rows.append({"beams": beams, "images": images, "seconds": caption_seconds(captioner, some) / images})
    return rows


def measure_loading(base: Path, data: Path, out: Path, rounds: int, images: int = 60) -> dict[str, list[float]]:
    """Seconds a picture from the disk: decoded and made into what the tower takes, or its features read."""
    paths = [str(path) for path in sorted((data / "train").glob("*.jpg"))[:images]]
    _, processor = plain_model(base, 224)
    cache = FeatureCache(out / "loading", (197, 768), torch.bfloat16)
    digests = [image_digest(path) for path in paths]
    cache.put(digests, torch.randn(len(paths), 197, 768).bfloat16())
    cache.flush()
    whole = ImageTransform(processor.image_processor)
    kept = ImageTransform(processor.image_processor, cache.get)
    ways: dict[str, Any] = {
        "PIL and BlipProcessor": lambda path: processor(images=load_image(path), return_tensors="pt"),
        "medcap, as bytes": lambda path: whole({"image": [path]}),
        "medcap, features": lambda path: kept({"image": [path]}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for path in paths:
                way(path)
            seconds[name].append((time.perf_counter() - started) / len(paths))
    return {name: values[1:] for name, values in seconds.items()}
