"""Fingerprints of pictures, which tell that two are the same or nearly so; each image is decoded once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, config
from tqdm import tqdm

from medcap.data.images import load_image

HASH_SIDE = 16  # of the perceptual hash: 16 x 16 = 256 bits
_VERSION = 1  # of what a Print holds; another number forgets what was remembered


@dataclass(frozen=True)
class Print:
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


def take_print(entry: Any) -> Print:
    """Return the Print of what an image column holds (as for `load_image`)."""
    import imagehash  # brings scipy, which takes a second

    try:
        image = load_image(entry)
    except ValueError as error:
        return Print(cause=str(error))
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return Print("", digest, np.packbits(bits).tobytes(), *image.size)


def take_prints(dataset: Dataset, num_proc: int | None = None) -> list[Print]:
    """Return the Print of every row, in order; a progress bar runs on stderr.

    `num_proc` processes share the work; None: one for each core. Prints are remembered in `prints.sqlite` in the
    cache of `datasets` (HF_DATASETS_CACHE) by path, size and time of change of the file or zip, or by the content of
    images that lie in the data itself; a file that was changed is decoded anew.
    """
    entries = _entries(dataset)
    keys = _keys(entries)
    with closing(_memory()) as memory:
        known = _recall(memory, keys)
        new = [i for i, key in enumerate(keys) if key not in known]
        with tqdm(total=len(new), desc=f"decoding {dataset.split or 'images'}", unit="image", disable=not new) as bar:
            made: list[tuple[str, Print]] = []
            for i, one in zip(new, _in_parallel([entries[i] for i in new], num_proc), strict=True):
                known[keys[i]] = one
                made.append((keys[i], one))
                bar.update()
                if len(made) == 1000 or i == new[-1]:
                    _remember(memory, made)
                    made = []
    return [known[key] for key in keys]


def _entries(dataset: Dataset) -> list[Any]:
    return dataset.with_format(None).select_columns(["image"]).cast_column("image", Image(decode=False))["image"][:]


def _in_parallel(entries: list[Any], num_proc: int | None) -> Iterator[Print]:
    workers = min(num_proc or len(os.sched_getaffinity(0)), 1 + len(entries) // 64)
    if workers < 2:
        yield from map(take_print, entries)
        return
    with Pool(workers) as pool:
        yield from pool.imap(take_print, entries, chunksize=16)


def _keys(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what names each entry's content: a hash of its bytes, or path, size and time of change."""
    stamps: dict[str, str] = {}

    def stamp(path: str) -> str:
        if path not in stamps:
            try:
                found = os.stat(path)
                stamps[path] = f"{found.st_size}:{found.st_mtime_ns}"
            except OSError:
                stamps[path] = "absent"
        return stamps[path]

    return [
        hashlib.blake2b(entry["bytes"], digest_size=20).hexdigest()
        if entry["bytes"] is not None
        else f"{entry['path']}:{stamp(entry['path'].rpartition('::')[2])}"
        for entry in entries
    ]


def _memory() -> sqlite3.Connection:
    folder = Path(config.HF_DATASETS_CACHE) / "medcap"
    folder.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(folder / f"prints-{_VERSION}.sqlite", timeout=60)
    memory.execute("CREATE TABLE IF NOT EXISTS prints (key TEXT PRIMARY KEY, cause, pixels, phash, width, height)")
    return memory


def _recall(memory: sqlite3.Connection, keys: list[str]) -> dict[str, Print]:
    known = {}
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        rows = memory.execute(f"SELECT * FROM prints WHERE key IN ({','.join('?' * len(some))})", some)
        known.update({key: Print(*values) for key, *values in rows})
    return known


def _remember(memory: sqlite3.Connection, made: list[tuple[str, Print]]) -> None:
    with memory:
        rows = [(key, *astuple(one)) for key, one in made]
        memory.executemany("INSERT OR REPLACE INTO prints VALUES (?, ?, ?, ?, ?, ?)", rows)
