"""Fingerprints of pictures, which tell that two are the same or nearly so; each image is decoded once."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, config
from tqdm import tqdm

from medcap.data.images import load_image

logger = logging.getLogger(__name__)

HASH_SIDE = 16  # of the perceptual hash: 16 x 16 = 256 bits
_BLOCK = 1000  # rows: what a kill loses at most
_VERSION = 1  # of what a ImageInfo holds; another number forgets what was remembered


@dataclass(frozen=True)
class ImageInfo:
    """What is kept of a picture. `cause` says why it cannot be decoded, and the rest is then empty.

    `pixels`: SHA-256 of size and RGB bytes, hexadecimal. `phash`: 32 bytes, the perceptual hash (`imagehash.phash`):
    of the 16 x 16 lowest frequencies of the grey picture at 64 x 64, which lie above their median.
    `width`, `height`: pixels.
    """

    cause: str = ""
    pixels: str = ""
    phash: bytes = b""
    width: int = 0
    height: int = 0


def inspect_image(entry: Any) -> ImageInfo:
    """Return the ImageInfo of an entry of an image column: as for `load_image`, or None for a missing image."""
    import imagehash  # brings scipy, which takes a second

    if entry is None or (isinstance(entry, Mapping) and set(entry.values()) == {None}):
        return ImageInfo(cause="there is no image")
    try:
        image = load_image(entry)
    except ValueError as error:
        return ImageInfo(cause=str(error))
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return ImageInfo("", digest, np.packbits(bits).tobytes(), *image.size)


def inspect_images(dataset: Dataset, num_proc: int | None = None) -> list[ImageInfo]:
    """Return the ImageInfo of every row, in order; a progress bar runs on stderr.

    `num_proc` processes share the work; None: one for each core. Prints are remembered in a file in the cache of
    `datasets` (HF_DATASETS_CACHE) by path, size and time of change of the file or zip, or by the content of images
    that lie in the data itself; a file that was changed is decoded anew, and so is one that could not be decoded.
    """
    images = dataset.with_format(None).select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
    found: list[ImageInfo] = []
    with closing(_memory()) as memory, ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(images), desc=f"decoding {dataset.split or 'images'}", unit="image"))
        run: Callable[..., Iterable[ImageInfo]] = map  # until there is something to share
        for start in range(0, len(images), _BLOCK):
            entries = images[start : start + _BLOCK]  # a block at a time: a column may hold 13 GB of parquet's bytes
            keys = _keys(entries)
            known = _recall(memory, keys)
            new = [i for i, key in enumerate(keys) if key not in known]
            if run is map and len(new) > 64 and (workers := num_proc or _cores()) > 1:
                run = partial(stack.enter_context(Pool(workers)).imap, chunksize=16)
            made = {}
            for i, one in zip(new, run(inspect_image, [entries[i] for i in new]), strict=True):
                made[keys[i]] = one
                bar.update()
            _remember(memory, made)
            bar.update(len(entries) - len(new))
            found += [made[key] if key in made else known[key] for key in keys]
    return found


def _cores() -> int:
    """Return the cores that this process may use; macOS does not tell, and has them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keys(entries: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """Return what names each entry's content: a hash of its bytes, or path, size and time of change; "" for none."""
    stamps: dict[str, str] = {}

    def stamp(path: str) -> str:
        if path not in stamps:
            try:
                found = os.stat(path)
                stamps[path] = f"{found.st_size}:{found.st_mtime_ns}"
            except OSError:
                stamps[path] = "absent"
        return stamps[path]

    def key(entry: Mapping[str, Any] | None) -> str:
        if entry and entry["bytes"] is not None:
            return hashlib.blake2b(entry["bytes"], digest_size=20).hexdigest()
        if not entry or not entry["path"]:
            return ""
        path = entry["path"] if "::" in entry["path"] else os.path.abspath(entry["path"])
        return f"{path}:{stamp(path.rpartition('::')[2])}"

    return [key(entry) for entry in entries]


def _memory() -> sqlite3.Connection:
    """Open the file of what is remembered; where that cannot be, say so and remember for this once."""
    path = Path(config.HF_DATASETS_CACHE) / "medcap" / f"prints-{_VERSION}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _with_table(sqlite3.connect(path, timeout=60))
    except (OSError, sqlite3.Error) as error:
        logger.warning("%s: %s; what is decoded now will be decoded again next time", path, error)
        return _with_table(sqlite3.connect(":memory:"))


def _with_table(memory: sqlite3.Connection) -> sqlite3.Connection:
    memory.execute("CREATE TABLE IF NOT EXISTS prints (key TEXT PRIMARY KEY, cause, pixels, phash, width, height)")
    return memory


def _recall(memory: sqlite3.Connection, keys: list[str]) -> dict[str, ImageInfo]:
    known = {}
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        rows = memory.execute(f"SELECT * FROM prints WHERE key IN ({','.join('?' * len(some))})", some)
        known.update({key: ImageInfo(*values) for key, *values in rows})
    return known


def _remember(memory: sqlite3.Connection, made: Mapping[str, ImageInfo]) -> None:
    """Keep the prints of what could be decoded; a package that is installed later helps the others."""
    rows = [(key, *astuple(one)) for key, one in made.items() if not one.cause]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO prints VALUES (?, ?, ?, ?, ?, ?)", rows)
    except sqlite3.OperationalError as error:  # a full or write-protected disk; the prints are there all the same
        logger.warning("%d prints are not remembered: %s", len(rows), error)
