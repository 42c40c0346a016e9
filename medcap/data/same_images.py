"""Image files that are in several splits, found without reading more of them than needed."""

from __future__ import annotations

import functools
import io
import logging
import os
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import combinations
from typing import Any

import pyarrow.compute as compute
from datasets import Dataset

from medcap.data.images import image_digest

logger = logging.getLogger(__name__)

_PART = 4096  # bytes
Entry = tuple[str, int]  # split and row


def warn_same_images(data: Mapping[str, Dataset], source: object) -> None:
    """Warn about images of which another split has the same file, with their number and an example.

    Files are compared by size, those of one size by 4 KiB at the start, middle and end, and those that still agree by
    a hash of all bytes. Of a zip, the sizes and CRCs in its index are compared. Images with the same pixels in
    different files are found by the audit and by `exclude_leaks`.
    """
    images = {split: rows.select_columns(["image"]) for split, rows in data.items()}
    sizes = {(split, row): size for split, rows in images.items() for row, size in enumerate(_sizes(rows)) if size}
    same = _in_several_splits(sizes)
    for content in (_parts, _digest):
        found = {(split, row): content(images[split][row]["image"]) for split, row in same}
        same = _in_several_splits({entry: (same[entry], key) for entry, key in found.items() if key is not None})
    for lower, higher in combinations(data, 2):
        first = {key: row for (split, row), key in same.items() if split == lower}
        rows = [(row, first[key]) for (split, row), key in same.items() if split == higher and key in first]
        if rows:
            ids = data[higher]["image_id"][rows[0][0]], data[lower]["image_id"][rows[0][1]]
            logger.warning(
                "%s: %d images of %s are also in %s, such as %s and %s; exclude_leaks: true drops them from %s",
                source, len(rows), higher, lower, *ids, lower,
            )  # fmt: skip


def _in_several_splits(keys: Mapping[Entry, Hashable]) -> dict[Entry, Hashable]:
    """Return the entries whose key is that of an entry of another split too."""
    splits: dict[Hashable, set[str]] = {}
    for (split, _), key in keys.items():
        splits.setdefault(key, set()).add(split)
    return {entry: key for entry, key in keys.items() if len(splits[key]) > 1}


def _sizes(rows: Dataset) -> Iterator[Hashable]:
    """Yield size and, in a zip, CRC of each image; None for a missing one."""
    archives = functools.cache(_index)
    for batch in rows.with_format("arrow").iter(1000):
        data, path = (compute.struct_field(batch["image"], name) for name in ("bytes", "path"))
        for size, name in zip(compute.binary_length(data).to_pylist(), path.to_pylist(), strict=True):
            yield size if size is not None or name is None else _file_size(name, archives)


def _file_size(path: str, archives: Callable[[str], dict[str, tuple[int, int]]]) -> Hashable:
    try:
        if path.startswith("zip://"):
            member, _, archive = path.removeprefix("zip://").rpartition("::")
            return archives(archive).get(member)
        return os.stat(path).st_size
    except (OSError, zipfile.BadZipFile):  # reported when the image is read
        return None


def _index(archive: str) -> dict[str, tuple[int, int]]:
    with zipfile.ZipFile(archive) as file:
        return {member.filename: (member.file_size, member.CRC) for member in file.infolist()}


def _parts(image: Mapping[str, Any]) -> bytes | None:
    """Return the start, middle and end of a file, nothing of a zip, and None for a file that cannot be read."""
    path, data = image["path"] or "", image["bytes"]
    if data is None and path.startswith("zip://"):
        return b""
    try:
        with io.BytesIO(data) if data is not None else open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            parts = [(file.seek(max(0, start)), file.read(_PART))[1] for start in (0, size // 2, size - _PART)]
        return b"".join(parts)
    except OSError:
        return None


def _digest(image: Mapping[str, Any]) -> bytes | None:
    try:
        return b"" if image["bytes"] is None and image["path"].startswith("zip://") else image_digest(image)
    except ValueError:
        return None
