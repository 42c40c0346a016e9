"""The frozen vision tower's outputs: made once for each image, and kept on disk.

A cache is a folder of parts. A part belongs to one process: NAME.bin holds features one behind the other, NAME.idx the
16 bytes of each one's image in the same order. An image is added to the index after its features are safely on disk,
so a kill at any time loses the last few and spoils nothing, and any number of processes may fill a folder together.
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

logger = logging.getLogger(__name__)

FLUSH = 64  # images: what a kill loses at most
MOST_OF_DISK = 0.8  # of what is free, "auto" takes no more


def default_folder() -> Path:
    """Where features are kept: `medcap/features` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medcap" / "features"


class FeatureCache:
    """Features by image digest, in `folder`: tensors of `shape` (1 + patches, width) and `dtype`.

    Reading is safe in any process, DataLoader workers included; a copy of a cache (pickled or forked) only reads.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self._slots: dict[bytes, tuple[str, int]] = {}
        self._read: dict[str, int] = {}  # how much of each index was read
        self._maps: dict[str, np.memmap] = {}
        self._part, self._pid = uuid.uuid4().hex, os.getpid()
        self._pending: list[bytes] = []
        self._full = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features tell of pictures; who shares them opens it
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_pending": [], "_pid": None}

    @property
    def slot_bytes(self) -> int:
        """Bytes of one image."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._slots)

    def describe(self, images: int) -> str:
        """One line: where features are kept, and how much room those of `images` images take."""
        room = images * self.slot_bytes / 1e9
        return f"features of the vision tower are kept in {self.folder}: {room:.2f} GB for {images:,} images"

    def refresh(self) -> None:
        """Learn of what was added to the indexes, by this process and others, since the last look."""
        for index in self.folder.glob("*.idx"):
            done = self._read.get(index.stem, 0)
            if index.stat().st_size - done < DIGEST_BYTES:
                continue
            with index.open("rb") as file:
                file.seek(done)
                digests = file.read()
            whole = len(digests) // DIGEST_BYTES
            for slot in range(whole):
                digest = digests[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES]
                self._slots.setdefault(digest, (index.stem, done // DIGEST_BYTES + slot))
            self._read[index.stem] = done + whole * DIGEST_BYTES

    def get(self, digest: bytes) -> torch.Tensor | None:
        """The features of an image, a copy of its own, or None where they are not there yet."""
        if digest not in self._slots:
            self.refresh()
        if digest not in self._slots:
            return None
        part, slot = self._slots[digest]
        if part not in self._maps or len(self._maps[part]) <= slot:
            whole = (self.folder / f"{part}.bin").stat().st_size // self.slot_bytes
            shape = (whole, self.slot_bytes)
            self._maps[part] = np.memmap(self.folder / f"{part}.bin", dtype=np.uint8, mode="r", shape=shape)
        return torch.from_numpy(np.array(self._maps[part][slot])).view(self.dtype).view(self.shape)

    def put(self, digests: Sequence[bytes], features: torch.Tensor) -> None:
        """Keep `features` (n, 1 + patches, width) of n images. A full disk is said once, and nothing is lost."""
        if self._full or self._pid != os.getpid():
            return
        try:
            with (self.folder / f"{self._part}.bin").open("ab") as file:
                file.truncate(self._written_bytes)  # what a full disk left of an image
                file.write(features.to(self.dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            self._give_up(error)
            return
        self._pending += digests
        if len(self._pending) >= FLUSH:
            self.flush()

    @property
    def _written_bytes(self) -> int:
        return (self._read.get(self._part, 0) // DIGEST_BYTES + len(self._pending)) * self.slot_bytes

    def flush(self) -> None:
        """Put on disk what was kept so far, features before index."""
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
        """Keep no more: after half a digest, the next one would stand for another image's features."""
        self._full = True
        logger.warning("%s: %s; features are no longer kept, and made anew where needed", self.folder, error)


@dataclass(frozen=True)
class FeatureEncoder:
    """From a batch of `CaptionCollator` to features, whether they were kept or not. `cache` None: nothing is kept."""

    tower: nn.Module
    cache: FeatureCache | None = None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Features (B, 1 + patches, width) of `pixel_values`, and of those that came as `features`, in order."""
        pixels, known = batch.get("pixel_values"), batch.get("features")
        device = next(self.tower.parameters()).device
        if pixels is None:
            return known.to(device, non_blocking=True)  # type: ignore[union-attr]
        made = self._encode(pixels.to(device, non_blocking=True))
        if self.cache is not None and "digests" in batch:
            self.cache.put([bytes(digest) for digest in batch["digests"].numpy()], made)
        if known is None:
            return made
        is_known = batch["is_known"].to(device)
        features = made.new_empty(len(is_known), *made.shape[1:])
        features[is_known] = known.to(device, made.dtype, non_blocking=True)
        features[~is_known] = made
        return features

    def flush(self) -> None:
        """Put on disk what was kept so far: only then it is found again, by this process and by others."""
        if self.cache is not None:
            self.cache.flush()

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (B, 1 + patches, width). What is kept must not depend on what else was in the batch.

        A matrix product may round otherwise in a batch of another size, so a run that was killed and finds some images
        kept would not be the run that was not. On a CPU an image alone takes about as long as in a batch.
        """
        alone = self.cache is not None and pixels.device.type == "cpu"
        return torch.cat([self.tower(part).last_hidden_state for part in pixels.split(1 if alone else len(pixels))])


def open_cache(
    wanted: str, model: BlipForConditionalGeneration, processor: BlipProcessor, dtype: torch.dtype, images: int
) -> FeatureCache | None:
    """The cache for `model` as `feature_cache` says: "auto", "off" or a folder; None for off.

    It is looked for under a key of everything that the features depend on: another tower, size, precision or library
    is another folder. `dtype` is what the tower computes in, and what is kept: nothing is rounded. `images`: how many
    will be needed, for an estimate of the room. "auto" does without where a weight of the tower learns or the disk
    lacks room, and says so; a folder that was asked for raises ValueError or OSError there.
    """
    if wanted == "off":
        return None
    if reason := caching_obstacle(model):
        _without(wanted, reason)
        return None
    key = feature_key(model, processor, dtype)
    folder = (default_folder() if wanted == "auto" else Path(wanted)) / key[:16]
    cache = FeatureCache(folder, feature_shape(model), dtype)
    needed, free = max(images - len(cache), 0) * cache.slot_bytes, shutil.disk_usage(folder).free
    if needed > MOST_OF_DISK * free:
        _without(wanted, f"{images:,} images need {needed / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} free")
        return None
    return cache


def _without(wanted: str, reason: str) -> None:
    if wanted != "auto":
        raise ValueError(f"feature_cache: {wanted} cannot be used: {reason}; leave it at auto or off")
    logger.warning("no feature cache: %s", reason)


def feature_shape(model: BlipForConditionalGeneration) -> tuple[int, int]:
    """What the tower makes of one image: (1 + patches, width)."""
    vision = model.config.vision_config
    return 1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size


def caching_obstacle(model: BlipForConditionalGeneration) -> str:
    """Why the tower's output for a picture is not always the same; "" where it is."""
    if any(weight.requires_grad for weight in model.vision_model.parameters()):
        return "lora_target_modules reaches the vision tower, whose output changes as it learns"
    if any("lora_" in name for name, _ in model.vision_model.named_modules()):
        return "the adapter changes the vision tower"
    if model.config.vision_config.attention_dropout:
        return "the vision tower drops out attention at random"
    return ""


def feature_key(model: BlipForConditionalGeneration, processor: BlipProcessor, dtype: torch.dtype) -> str:
    """SHA-256, hexadecimal, of all that the features of an image depend on beside its bytes."""
    digest = hashlib.sha256()
    versions = {"medcap": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    about = {
        **versions,
        "pillow": PIL.__version__,
        "dtype": str(dtype),
        "vision": model.config.vision_config.to_dict(),
        "images": processor.image_processor.to_dict(),
    }
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.vision_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
