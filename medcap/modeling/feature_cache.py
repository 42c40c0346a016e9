"""Disk cache of the frozen vision encoder's features: when it is used, for which model, and how batches read it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap import __version__
from medcap.data.images import PIXEL_VERSION
from medcap.modeling.blip import update_digest
from medcap.modeling.feature_store import ABOUT, FORMAT, FeatureCache, default_folder, stored_bytes

logger = logging.getLogger(__name__)

MAX_DISK_FRACTION = 0.8  # of the free disk space


@dataclass(frozen=True)
class FeatureEncoder:
    """Return the features of batches of `CaptionCollator`, and add those of new images to `cache`."""

    vision_model: nn.Module
    cache: FeatureCache | None = None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the features (B, 1 + patches, width) of the rows of `batch`."""
        pixels, cached = batch.get("pixel_values"), batch.get("features")
        device = next(self.vision_model.parameters()).device
        if pixels is None:
            return cached.to(device, non_blocking=True)  # type: ignore[union-attr]
        encoded = self._encode(pixels.to(device, non_blocking=True))
        if self.cache is not None and "digests" in batch:
            self.cache.put([bytes(digest) for digest in batch["digests"].numpy()], encoded)
        if cached is None:
            return encoded
        is_cached = batch["is_cached"].to(device)
        features = encoded.new_empty(len(is_cached), *encoded.shape[1:])
        features[is_cached] = cached.to(device, encoded.dtype, non_blocking=True)
        features[~is_cached] = encoded
        return features

    def flush(self) -> None:
        """Sync the cache to disk, which makes new features available."""
        if self.cache is not None:
            self.cache.flush()

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (B, 1 + patches, width); with a cache on a CPU they do not depend on the batch.

        A matrix product may round differently at another batch size, so a resumed run, with some images cached, would
        differ from an uninterrupted one. On a CPU single images are about as fast as a batch.
        """
        one_by_one = self.cache is not None and pixels.device.type == "cpu"
        parts = pixels.split(1 if one_by_one else len(pixels))
        return torch.cat([self.vision_model(part).last_hidden_state for part in parts])


def open_cache(
    setting: str,
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    dtype: torch.dtype,
    images: int,
    limit_gb: float | None = None,
) -> FeatureCache | None:
    """Open the feature cache of `model`, in a folder named by `feature_key`.

    Args:
        setting: A recipe's `feature_cache`: "auto", "off" or a folder.
        model: Its vision encoder must be frozen.
        processor: Part of the key.
        dtype: Of the computation and of the stored features.
        images: Number of images, to estimate the disk space.
        limit_gb: Maximum size of all features in the folder, of any model; None is no limit but the free disk space.

    Returns:
        The cache; None for "off", and, with a warning, for "auto" if features cannot be cached or do not fit on disk.

    Raises:
        ValueError: The setting is a folder, and features cannot be cached.
    """
    if setting == "off":
        return None
    if reason := caching_obstacle(model):
        _no_cache(setting, reason)
        return None
    root = default_folder() if setting == "auto" else Path(setting)
    folder = root / feature_key(model, processor, dtype)[:16]
    try:
        cache = FeatureCache(folder, feature_shape(model), dtype, math.inf if limit_gb is None else limit_gb * 1e9)
        reason = _space_obstacle(cache, images)
        _write_about(folder, model, dtype)
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
    if reason:
        _no_cache(setting, reason)
        return None
    return cache


def _space_obstacle(cache: FeatureCache, images: int) -> str:
    """Return why the features of `images` images cannot be stored; "" if they can, at least up to the limit."""
    missing, used = max(images - len(cache), 0) * cache.slot_bytes, stored_bytes(cache.folder.parent)
    if missing and not len(cache) and cache.limit - used < cache.slot_bytes:
        return (
            f"feature_cache_gb is {cache.limit / 1e9:g} and {cache.folder.parent} has {used / 1e9:.1f} GB of other "
            "features; `medcap cache clear` removes them"
        )
    needed, free = min(missing, cache.limit - used), shutil.disk_usage(cache.folder).free
    if needed > MAX_DISK_FRACTION * free:
        return f"{images:,} images need {needed / 1e9:.1f} GB more, {cache.folder} has {free / 1e9:.1f} GB free"
    return ""


def _write_about(folder: Path, model: BlipForConditionalGeneration, dtype: torch.dtype) -> None:
    """Write the model's name for `medcap cache`, and the time of this use."""
    about, size = folder / ABOUT, model.config.vision_config.image_size
    try:
        with about.open("x") as file:
            json.dump({"base": model.name_or_path, "image_size": size, "dtype": str(dtype)}, file)
    except FileExistsError:
        about.touch()


def _no_cache(setting: str, reason: str) -> None:
    if setting != "auto":
        raise ValueError(f"feature_cache: {setting} cannot be used: {reason}; set it to another folder, auto or off")
    logger.warning("no feature cache: %s", reason)


def feature_shape(model: BlipForConditionalGeneration) -> tuple[int, int]:
    """Return the shape of one image's features: (1 + patches, width)."""
    vision = model.config.vision_config
    return 1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size


def caching_obstacle(model: BlipForConditionalGeneration) -> str:
    """Return why the features of an image are not constant; "" if they are."""
    if any(weight.requires_grad for weight in model.vision_model.parameters()):
        return "lora_target_modules includes the vision encoder, whose features change in training"
    if any("lora_" in name for name, _ in model.vision_model.named_modules()):
        return "the adapter changes the vision encoder"
    if model.config.vision_config.attention_dropout:
        return "the vision encoder uses attention dropout"
    return ""


def feature_key(model: BlipForConditionalGeneration, processor: BlipProcessor, dtype: torch.dtype) -> str:
    """Return the SHA-256 (hexadecimal) of everything but the image that features depend on."""
    settings = {
        "medcap": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "files": FORMAT,
        "pixels": PIXEL_VERSION,
        "dtype": str(dtype),
        "model_code": model.model_code,
        "vision": model.config.vision_config.to_dict(),
        "images": processor.image_processor.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    update_digest(digest, model.vision_model.state_dict())
    return digest.hexdigest()
