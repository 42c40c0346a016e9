"""Files of the feature cache: features of images by digest, which several processes read and add to.

Each process writes one part of the folder: PART.bin has the features, PART.idx one entry per image in the same order.
An entry is the 16-byte digest of the image and an 8-byte checksum of digest and features. It is written after its
features are synced to disk, so a killed process loses the last few only. Features whose checksum is wrong are never
returned: they are computed and stored again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from medcap.data.images import DIGEST_BYTES
from medcap.disk import megabytes
from medcap.io import cache_folder

logger = logging.getLogger(__name__)

FLUSH = 64  # images between syncs to disk
ENTRY_BYTES = DIGEST_BYTES + 8
FORMAT = 2  # of the files
ABOUT = "about.json"  # the model of a cache; the time of the file is that of the last use


def default_folder() -> Path:
    """Return `features` in medcap's cache folder."""
    return cache_folder() / "features"


def stored_bytes(root: Path) -> int:
    """Return the size of all feature files below `root`, of any model."""
    return sum(file.stat().st_size for file in root.rglob("*.bin"))


@dataclass(frozen=True)
class StoredCache:
    """One model's cache on the disk: its folder, size in bytes, images, and time of the last use."""

    folder: Path
    size: int
    images: int
    used: float

    def describe(self) -> str:
        """Return one line; the model is unknown if a killed process did not write its name."""
        about = _read_about(self.folder)
        model = f"{about['base']}, {about['image_size']} px, {about['dtype']}" if about else "unknown model"
        day = time.strftime("%Y-%m-%d", time.localtime(self.used))
        return f"{self.folder.name}  {megabytes(self.size):>10}  {self.images:7,} images  used {day}  {model}"


def stored_caches(root: Path) -> list[StoredCache]:
    """Return the caches below `root`, of all models and versions."""
    folders = [path for path in sorted(root.iterdir()) if _is_cache(path)] if root.is_dir() else []
    return [_stored_cache(folder) for folder in folders]


def _stored_cache(folder: Path) -> StoredCache:
    images = sum(file.stat().st_size for file in folder.glob("*.idx")) // ENTRY_BYTES
    return StoredCache(folder, stored_bytes(folder), images, max(file.stat().st_mtime for file in folder.iterdir()))


def _is_cache(path: Path) -> bool:
    """Tell caches, named by a key, from other folders, which `medcap cache clear` must not remove."""
    names = {file.name for file in path.iterdir()} if re.fullmatch("[0-9a-f]{16}", path.name) else set()
    return bool(names) and all(name == ABOUT or name.endswith((".bin", ".idx")) for name in names)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        return {}


class FeatureCache:
    """Features of images by digest, in `folder`: tensors of `shape` (1 + patches, width) and `dtype`.

    `limit` is the maximum size in bytes of all caches in the parent of `folder`. A pickled or forked copy, as in a
    DataLoader worker, only reads.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype, limit: float = math.inf) -> None:
        self.folder, self.shape, self.dtype, self.limit = folder, shape, dtype, limit
        self.slot_bytes = shape[0] * shape[1] * dtype.itemsize  # of one image
        self._slots: dict[bytes, tuple[str, int, bytes]] = {}  # part, position, checksum
        self._read: dict[str, int] = {}  # bytes read of each index
        self._damaged: set[str] = set()  # parts that were reported
        self._part, self._pid = uuid.uuid4().hex, os.getpid()
        self._pending: list[bytes] = []  # entries
        self._full = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features reveal images: private by default
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pending": [], "_pid": None}

    def __len__(self) -> int:
        return len(self._slots)

    def describe(self, images: int) -> str:
        """Return one line: the folder, and the disk space of `images` images."""
        size, limit = images * self.slot_bytes, ""
        if self.limit < math.inf:
            limit = f", at most {self.limit / 1e9:g} GB with all other features there (feature_cache_gb)"
        return (
            f"features of the vision encoder are cached in {self.folder}: {size / 1e9:.2f} GB for {images:,} images"
            f"{limit}; `medcap cache` lists and clears caches"
        )

    def refresh(self) -> None:
        """Read what any process added to the indexes since the last call; the newest entry of an image counts."""
        for index in sorted(self.folder.glob("*.idx"), key=_modified):
            done = self._read.get(index.stem, 0)
            try:
                with index.open("rb") as file:
                    file.seek(done)
                    entries = file.read()
            except FileNotFoundError:  # removed by `medcap cache clear`
                continue
            for start in range(0, len(entries) - ENTRY_BYTES + 1, ENTRY_BYTES):
                entry = entries[start : start + ENTRY_BYTES]
                slot = (done + start) // ENTRY_BYTES
                self._slots[entry[:DIGEST_BYTES]] = (index.stem, slot, entry[DIGEST_BYTES:])
            self._read[index.stem] = done + len(entries) // ENTRY_BYTES * ENTRY_BYTES

    def get(self, digest: bytes) -> torch.Tensor | None:
        """Return a copy of an image's features; None if they are not cached or damaged."""
        if digest not in self._slots:
            self.refresh()
        if digest not in self._slots:
            return None
        part, slot, checksum = self._slots[digest]
        features = self._load(part, slot)
        if _checksum(digest, features) != checksum:
            self._forget(digest, part)
            return None
        return torch.frombuffer(features, dtype=self.dtype).view(self.shape)

    def _load(self, part: str, slot: int) -> bytearray:
        """Return the bytes of a slot; fewer if the file is too short, missing or unreadable."""
        features = bytearray(self.slot_bytes)
        try:
            with (self.folder / f"{part}.bin").open("rb", buffering=0) as file:
                file.seek(slot * self.slot_bytes)
                return features[: file.readinto(features)]
        except OSError:
            return bytearray()

    def _forget(self, digest: bytes, part: str) -> None:
        del self._slots[digest]
        if part not in self._damaged:
            self._damaged.add(part)
            file = self.folder / f"{part}.bin"
            logger.warning("%s is missing or damaged; features that cannot be read are computed again", file)

    def put(self, digests: Sequence[bytes], features: torch.Tensor) -> None:
        """Store `features` (n, 1 + patches, width). On a full disk or at the limit, warn once and store no more."""
        if self._full or self._pid != os.getpid():
            return
        if self._exceeds_limit(len(digests)):
            self._stop_at_limit()
            return
        slots = features.to(self.dtype).cpu().contiguous().view(torch.uint8).numpy().reshape(len(digests), -1)
        written = (self._read.get(self._part, 0) // ENTRY_BYTES + len(self._pending)) * self.slot_bytes
        try:
            with (self.folder / f"{self._part}.bin").open("ab") as file:
                file.truncate(written)  # remove an image that was written in part
                file.write(slots.tobytes())
        except OSError as error:
            self._give_up(error)
            return
        self._pending += [digest + _checksum(digest, slot) for digest, slot in zip(digests, slots, strict=True)]
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

    def _exceeds_limit(self, images: int) -> bool:
        return self.limit < math.inf and stored_bytes(self.folder.parent) + images * self.slot_bytes > self.limit

    def _stop_at_limit(self) -> None:
        self.flush()
        self._full = True
        message = "%s has reached feature_cache_gb (%g GB): no more features are cached"
        logger.warning(message, self.folder.parent, self.limit / 1e9)

    def _give_up(self, error: OSError) -> None:
        """Stop writing, and remove the own part: the disk may be needed for checkpoints."""
        self._full = True
        for suffix in (".bin", ".idx"):
            (self.folder / f"{self._part}{suffix}").unlink(missing_ok=True)
        self._slots = {digest: slot for digest, slot in self._slots.items() if slot[0] != self._part}
        message = "%s: %s; features that this run cached are removed, and new ones are not cached"
        logger.warning(message, self.folder, error)


def _checksum(digest: bytes, features: Any) -> bytes:
    """Return the 8-byte checksum of an image's digest and features (any buffer)."""
    state = xxhash.xxh3_64(digest)
    state.update(features)
    return state.digest()


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
