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

from medcap import __version__
from medcap.data.images import PIXEL_VERSION
from medcap.modeling.families import Family
from medcap.modeling.feature_store import ABOUT, FORMAT, FeatureCache, default_folder, stored_bytes
from medcap.modeling.load import update_digest

logger = logging.getLogger(__name__)

SELECTED = ("vision_feature_layer", "vision_feature_select_strategy")  # of the vision encoder's states
MAX_DISK_FRACTION = 0.8  # of the free disk space


@dataclass(frozen=True)
class FeatureEncoder:
    """Return the features of batches of `CaptionCollator`, and add those of new images to `cache`."""

    family: Family
    cache: FeatureCache | None = None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the features (B, 1 + patches, width) of the rows of `batch`."""
        pixels, cached = batch.get("pixel_values"), batch.get("features")
        device = self.family.base.device
        if pixels is None:
            return cached.to(device, non_blocking=True)  # type: ignore[union-attr]
        encoded = self._encode(pixels.to(device, non_blocking=True))
        if self.cache is not None:  # a vision encoder in float32 has features in float32
            encoded = encoded.to(self.cache.dtype)
        if self.cache is not None and "digests" in batch:
            self.cache.put([bytes(digest) for digest in batch["digests"].tolist()], encoded)
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
        return torch.cat([self.family.encode(part) for part in parts])


def open_cache(
    setting: str,
    family: Family,
    dtype: torch.dtype,
    images: int,
    limit_gb: float | None = None,
) -> FeatureCache | None:
    """Open the feature cache of a base, in a folder named by `feature_key`.

    Args:
        setting: A recipe's `feature_cache`: "auto", "off" or a folder.
        family: The base with its adapter; its vision encoder must be frozen.
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
    if reason := caching_obstacle(family):
        _no_cache(setting, reason)
        return None
    root = default_folder() if setting == "auto" else Path(setting)
    folder = root / feature_key(family, dtype)[:16]
    try:
        cache = FeatureCache(folder, family.feature_shape(), dtype, math.inf if limit_gb is None else limit_gb * 1e9)
        reason = _space_obstacle(cache, images)
        _write_about(folder, family, dtype)
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


def _write_about(folder: Path, family: Family, dtype: torch.dtype) -> None:
    """Write the model's name for `medcap cache`, and the time of this use."""
    about, base = folder / ABOUT, family.base.name_or_path
    try:
        with about.open("x") as file:
            json.dump({"base": base, "image_size": family.image_size, "dtype": str(dtype)}, file)
    except FileExistsError:
        about.touch()


def _no_cache(setting: str, reason: str) -> None:
    if setting != "auto":
        raise ValueError(f"feature_cache: {setting} cannot be used: {reason}; set it to another folder, auto or off")
    logger.warning("no feature cache: %s", reason)


def caching_obstacle(family: Family) -> str:
    """Return why the features of an image are not constant; "" if they are."""
    if reason := family.feature_obstacle():
        return reason
    if trains_features(family):
        return "modules that compute the features are trained, such as the vision encoder"
    if any("lora_" in name for module in _modules(family) for name, _ in module.named_modules()):
        return "the adapter changes the vision encoder"
    if getattr(family.vision_encoder.config, "attention_dropout", 0):
        return "the vision encoder uses attention dropout"
    return ""


def trains_features(family: Family) -> bool:
    """Return whether training changes the features."""
    return any(weight.requires_grad for module in _modules(family) for weight in module.parameters())


def _modules(family: Family) -> list[nn.Module]:
    return [family.vision_encoder, *family.feature_modules()]


def feature_key(family: Family, dtype: torch.dtype) -> str:
    """Return the SHA-256 (hexadecimal) of everything but the image that features depend on."""
    settings = {
        "medcap": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "files": FORMAT,
        "pixels": PIXEL_VERSION,
        "dtype": str(dtype),
        "model_code": getattr(family.base, "model_code", None),
        "vision": family.vision_encoder.config.to_dict(),
        "states": [
            getattr(family.base.config, f"vision_feature_{name}", None) for name in ("layer", "select_strategy")
        ],
        "images": family.processor.image_processor.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for module in _modules(family):
        update_digest(digest, module.state_dict())
    return digest.hexdigest()
