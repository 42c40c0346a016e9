"""Image files that a table names: in either Unicode form, and only inside the data set's folder unless allowed."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from medcap.data.tables import list_some

ALLOW = "allow_outside: true (or --allow_outside) reads them"


def find_images(
    names: Sequence[str | None], folder: Path, roots: Sequence[Path], allow_outside: bool, source: object
) -> list[str | None]:
    """Return the absolute paths of image files; None for None and for a file that does not exist.

    Args:
        names: Paths, absolute or relative to `folder`, or `zip://member::archive`.
        folder: The folder of the table.
        roots: Folders that may contain the files; a link that leaves them is outside.
        allow_outside: Whether files outside the `roots` are read too.
        source: The table and its column, for the error.

    Raises:
        ValueError: A name is blank, a URL, or outside the roots. The message names `source` and rows.
    """
    paths = [None if name is None else absolute(name, folder) for name in names]
    is_inside = _inside(roots)
    invalid: dict[str, int] = {}  # with the first row
    for row, (name, path) in enumerate(zip(names, paths, strict=True), 1):
        if name is not None and path is not None and not (_is_file_name(name) and (allow_outside or is_inside(path))):
            invalid.setdefault(name, row)
    if invalid:
        inside = "files" if allow_outside else f"files inside {roots[0]}"
        advice = f"; {ALLOW}" if not allow_outside and any(map(_is_file_name, invalid)) else ""
        examples = list_some([f"{name!r} (row {row})" for name, row in invalid.items()])
        raise ValueError(f"{source} must contain names of {inside}, but has {examples}{advice}")
    find = _finder()
    return [None if path is None else find(path) for path in paths]


def check_inside(paths: Iterable[str], root: Path) -> None:
    """Raise ValueError for files outside `root`, to which a link leads."""
    is_inside = _inside([root])
    files = dict.fromkeys(path.rpartition("::")[2] for path in paths)  # of a zip:// URL, the archive
    if outside := [path for path in files if not is_inside(path)]:
        raise ValueError(f"links in {root} lead to files outside of it: {list_some(outside)}; {ALLOW}")


def absolute(name: str, folder: Path) -> str:
    """Return the absolute path of `name` in `folder`; zip:// URLs are unchanged."""
    return name if name.startswith("zip://") else os.path.abspath(folder / name)


def nfc(name: str) -> str:
    """Return a name in Unicode's composed form; macOS writes the decomposed one."""
    return unicodedata.normalize("NFC", name)


def _is_file_name(name: str) -> bool:
    return bool(name.strip()) and "\0" not in name and "://" not in name.removeprefix("zip://")


def _inside(roots: Sequence[Path]) -> functools._lru_cache_wrapper[bool]:
    real_folder = functools.cache(os.path.realpath)
    folders = [os.path.join(os.path.realpath(root), "") for root in roots]

    @functools.cache
    def is_inside(path: str) -> bool:
        folder, name = os.path.split(path.rpartition("::")[2])  # of a zip:// URL, the archive
        real = os.path.join(real_folder(folder), name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return any(real.startswith(root) for root in folders)

    return is_inside


def _finder() -> functools._lru_cache_wrapper[str | None]:
    @functools.cache
    def children(folder: str) -> dict[str, str]:
        try:
            return {nfc(name): name for name in sorted(os.listdir(folder))}
        except OSError:
            return {}

    @functools.cache
    def existing(path: str) -> str | None:
        """Return the path as it is spelled on the disk."""
        folder, name = os.path.split(path)
        if os.path.exists(path) or not name:
            return path
        parent = existing(folder)
        found = None if parent is None else children(parent).get(nfc(name))
        return None if parent is None or found is None else os.path.join(parent, found)

    @functools.cache
    def find(path: str) -> str | None:
        if path.startswith("zip://") or os.path.isfile(path):
            return path
        found = None if path.isascii() else existing(path)
        return found if found and os.path.isfile(found) else None

    return find
