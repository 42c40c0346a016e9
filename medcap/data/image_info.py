"""Decode every image of a data set once: whether it can be read, its pixel digest, its size and its perceptual hash.

Results are cached in SQLite. The cache of `Dataset.map` depends on the fingerprint of the data set: another selection
of rows or one edited file decodes everything again, a killed run loses its shard, and failures are cached.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, config
from tqdm import tqdm

from medcap.data.images import PIXEL_VERSION, load_image
from medcap.data.workers import Workers

logger = logging.getLogger(__name__)

NO_IMAGE = "there is no image"  # the error of a missing image
HASH_SIZE = 16  # of the perceptual hash: 16 x 16 = 256 bits
_BLOCK = 1000  # rows between two writes to the cache; a kill loses at most this many
_VERSION = 1  # of the fields of ImageInfo; a new version starts an empty cache


@dataclass(frozen=True)
class ImageInfo:
    """Properties of one decoded image.

    Attributes:
        error: Why the image cannot be decoded; the other fields are then empty.
        pixel_digest: SHA-256 of the size and the RGB bytes, hexadecimal.
        phash: Perceptual hash of 32 bytes (`imagehash.phash`: which of the 16 x 16 lowest frequencies of the gray
            image at 64 x 64 are above their median); empty unless requested.
    """

    error: str = ""
    pixel_digest: str = ""
    phash: bytes = b""
    width: int = 0
    height: int = 0


def inspect_image(entry: Any, perceptual_hash: bool = False) -> ImageInfo:
    """Return the ImageInfo of an entry as for `load_image`, or None for a missing image."""
    if entry is None or (isinstance(entry, Mapping) and set(entry.values()) == {None}):
        return ImageInfo(error=NO_IMAGE)
    try:
        image = load_image(entry)
    except ValueError as error:
        return ImageInfo(error=str(error))
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    phash = b""
    if perceptual_hash:
        import imagehash  # imports scipy, which takes a second

        phash = np.packbits(imagehash.phash(image, hash_size=HASH_SIZE).hash).tobytes()
    return ImageInfo("", digest, phash, *image.size)


def inspect_images(dataset: Dataset, num_proc: int | None = None, perceptual_hash: bool = False) -> list[ImageInfo]:
    """Return the ImageInfo of every row, in order; a progress bar is shown on stderr.

    Results are cached on disk below HF_DATASETS_CACHE. A file or zip is identified by path, size and modification
    time, an image stored in the data set by its bytes: a changed file is decoded again, and so is an image that could
    not be decoded or whose perceptual hash was not requested before.

    Args:
        dataset: Rows with a column "image".
        num_proc: Number of worker processes; default: one per core.
        perceptual_hash: Whether to compute `ImageInfo.phash`.

    Raises:
        ValueError: A worker process died at an image, which is named.
    """
    images = dataset.with_format(None).select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
    inspect = functools.partial(inspect_image, perceptual_hash=perceptual_hash)
    infos: list[ImageInfo] = []
    with closing(_open_cache()) as cache, ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(images), desc=f"decoding {dataset.split or 'images'}", unit="image"))
        run: Callable[..., Iterable[ImageInfo]] = map  # no worker processes until there is enough work
        for start in range(0, len(images), _BLOCK):
            entries = images[start : start + _BLOCK]  # one block at a time: a column may hold 13 GB of parquet bytes
            keys = _keys(entries)
            cached = _read_cache(cache, keys, perceptual_hash)
            missing = [i for i, key in enumerate(keys) if key not in cached]
            if run is map and len(missing) > 64 and (workers := num_proc or _count_cores()) > 1:
                run = functools.partial(stack.enter_context(Workers(workers)).map, name=_name)
            new = {}
            for i, info in zip(missing, run(inspect, [entries[i] for i in missing]), strict=True):
                new[keys[i]] = info
                bar.update()
            _write_cache(cache, new)
            bar.update(len(entries) - len(missing))
            infos += [new[key] if key in new else cached[key] for key in keys]
    return infos


def _name(entry: Mapping[str, Any] | None) -> str:
    return f"cannot read image {(entry and entry['path']) or 'bytes'}"


def _count_cores() -> int:
    """Return the number of cores that this process may use; on macOS that of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keys(entries: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """Return the cache key of each entry: a hash of its bytes, or path, size and modification time; "" for None."""

    @functools.cache
    def stamp(path: str) -> str:
        """Return size and modification time in ns, or "unreadable"."""
        try:
            stat = os.stat(path)
        except OSError:
            return "unreadable"
        return f"{stat.st_size}:{stat.st_mtime_ns}"

    def key(entry: Mapping[str, Any] | None) -> str:
        if entry and entry["bytes"] is not None:
            return hashlib.blake2b(entry["bytes"], digest_size=20).hexdigest()
        if not entry or not entry["path"]:
            return ""
        path = entry["path"] if "::" in entry["path"] else os.path.abspath(entry["path"])
        return f"{path}:{stamp(path.rpartition('::')[2])}"

    return [key(entry) for entry in entries]


def _open_cache() -> sqlite3.Connection:
    """Open the cache file; if that fails, warn and use a cache in memory."""
    path = Path(config.HF_DATASETS_CACHE) / "medcap" / f"image-info-{_VERSION}.{PIXEL_VERSION}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _with_table(sqlite3.connect(path, timeout=60))
    except (OSError, sqlite3.Error) as error:
        logger.warning("%s: cannot open the cache (%s); the images will be decoded again next time", path, error)
        return _with_table(sqlite3.connect(":memory:"))


def _with_table(cache: sqlite3.Connection) -> sqlite3.Connection:
    columns = "key TEXT PRIMARY KEY, error, pixel_digest, phash, width, height"
    cache.execute(f"CREATE TABLE IF NOT EXISTS images ({columns})")
    return cache


def _read_cache(cache: sqlite3.Connection, keys: list[str], perceptual_hash: bool) -> dict[str, ImageInfo]:
    """Return {key: ImageInfo} of the cached `keys`; with `perceptual_hash` only of those that have one."""
    cached = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        rows = cache.execute(f"SELECT * FROM images WHERE key IN ({','.join('?' * len(part))})", part)
        cached.update({key: ImageInfo(*values) for key, *values in rows})
    return {key: info for key, info in cached.items() if info.phash or not perceptual_hash}


def _write_cache(cache: sqlite3.Connection, infos: Mapping[str, ImageInfo]) -> None:
    """Cache the results without failures: a package that is installed later may read these images."""
    rows = [(key, *astuple(info)) for key, info in infos.items() if not info.error]
    try:
        with cache:
            cache.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
    except sqlite3.OperationalError as error:  # the disk is full or read-only; the results are still returned
        logger.warning("%d results cannot be cached: %s", len(rows), error)
