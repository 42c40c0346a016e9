"""Disk cache of the frozen vision encoder's features.

Each process writes one part of the folder: PART.bin has the features, PART.idx the 16-byte digests of their images, in
the same order. A digest is written after its features are synced to disk, so a killed process loses the last few only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap import __version__
from medcap.data.images import DIGEST_BYTES
from medcap.modeling.blip import update_digest

logger = logging.getLogger(__name__)

FLUSH = 64  # images between syncs to disk
MAX_DISK_FRACTION = 0.8  # of the free disk space


def default_folder() -> Path:
    """Return `medcap/features` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medcap" / "features"


class FeatureCache:
    """Features of images by digest, in `folder`: tensors of `shape` (1 + patches, width) and `dtype`.

    A pickled or forked copy, as in a DataLoader worker, only reads.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.slot_bytes = shape[0] * shape[1] * dtype.itemsize  # of one image
        self._slots: dict[bytes, tuple[str, int]] = {}
        self._read: dict[str, int] = {}  # bytes read of each index
        self._maps: dict[str, np.memmap] = {}
        self._part, self._pid = uuid.uuid4().hex, os.getpid()
        self._pending: list[bytes] = []
        self._full = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features reveal images: private by default
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_pending": [], "_pid": None}

    def __len__(self) -> int:
        return len(self._slots)

    def describe(self, images: int) -> str:
        """Return one line: the folder, and the disk space of `images` images."""
        size = images * self.slot_bytes / 1e9
        return f"features of the vision encoder are cached in {self.folder}: {size:.2f} GB for {images:,} images"

    def refresh(self) -> None:
        """Read what any process added to the indexes since the last call."""
        for index in self.folder.glob("*.idx"):
            done = self._read.get(index.stem, 0)
            if index.stat().st_size - done < DIGEST_BYTES:
                continue
            with index.open("rb") as file:
                file.seek(done)
                digests = file.read()
            complete = len(digests) // DIGEST_BYTES
            for slot in range(complete):
                digest = digests[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES]
                self._slots.setdefault(digest, (index.stem, done // DIGEST_BYTES + slot))
            self._read[index.stem] = done + complete * DIGEST_BYTES

    def get(self, digest: bytes) -> torch.Tensor | None:
        """Return a copy of an image's features; None if they are not cached."""
        if digest not in self._slots:
            self.refresh()
        if digest not in self._slots:
            return None
        part, slot = self._slots[digest]
        if part not in self._maps or len(self._maps[part]) <= slot:
            file = self.folder / f"{part}.bin"
            shape = (file.stat().st_size // self.slot_bytes, self.slot_bytes)
            self._maps[part] = np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
        return torch.from_numpy(np.array(self._maps[part][slot])).view(self.dtype).view(self.shape)

    def put(self, digests: Sequence[bytes], features: torch.Tensor) -> None:
        """Store `features` (n, 1 + patches, width). On a full disk, warn once and store no more."""
        if self._full or self._pid != os.getpid():
            return
        written = (self._read.get(self._part, 0) // DIGEST_BYTES + len(self._pending)) * self.slot_bytes
        try:
            with (self.folder / f"{self._part}.bin").open("ab") as file:
                file.truncate(written)  # remove an image that was written in part
                file.write(features.to(self.dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            self._give_up(error)
            return
        self._pending += digests
        if len(self._pending) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Sync to disk, features before the index."""
        if not self._pending or self._full or self._pid != os.getpid():
            return
        try:
            with (self.folder / f"{self._part}.bin").open("ab") as file:
                os.fsync(file.fileno())
            with (self.folder / f"{self._part}.idx").open("ab") as file:
                file.write(b"".join(self._pending))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)
        self._pending = []
        self.refresh()

    def _give_up(self, error: OSError) -> None:
        """Stop writing: after an incomplete digest, later ones would belong to other features."""
        self._full = True
        logger.warning("%s: %s; new features are not cached any more", self.folder, error)


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
    setting: str, model: BlipForConditionalGeneration, processor: BlipProcessor, dtype: torch.dtype, images: int
) -> FeatureCache | None:
    """Open the feature cache of `model`, in a folder named by `feature_key`.

    Args:
        setting: A recipe's `feature_cache`: "auto", "off" or a folder.
        model: Its vision encoder must be frozen.
        processor: Part of the key.
        dtype: Of the computation and of the stored features.
        images: Number of images, to estimate the disk space.

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
    folder = default_folder() if setting == "auto" else Path(setting)
    folder /= feature_key(model, processor, dtype)[:16]
    cache = FeatureCache(folder, feature_shape(model), dtype)
    needed, free = max(images - len(cache), 0) * cache.slot_bytes, shutil.disk_usage(folder).free
    if needed > MAX_DISK_FRACTION * free:
        _no_cache(setting, f"{images:,} images need {needed / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} GB free")
        return None
    return cache


def _no_cache(setting: str, reason: str) -> None:
    if setting != "auto":
        raise ValueError(f"feature_cache: {setting} cannot be used: {reason}; set it to auto or off")
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
        "dtype": str(dtype),
        "model_code": model.model_code,
        "vision": model.config.vision_config.to_dict(),
        "images": processor.image_processor.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    update_digest(digest, model.vision_model.state_dict())
    return digest.hexdigest()
