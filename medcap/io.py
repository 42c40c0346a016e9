"""Atomic writes: a file or folder has its final name only when it is complete and on the disk."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from medcap.disk import writing
from medcap.locks import lock_file

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are full-width = + - @
PARTIAL = ".part"  # suffix of an incomplete file or folder, which the next attempt removes


def cache_folder() -> Path:
    """Return `medcap` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medcap"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal checksum of a file."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file that is renamed to `path` at the end of the block, and removed after an error."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline=newline) as file:
        yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a file that is renamed to `path` at the end of the block, and removed after an error."""
    part = path.with_name(path.name + PARTIAL)
    try:
        with writing(path):
            yield part
            fsync(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises ValueError, with the path, for another format."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically; each row ends with a newline. Texts that are formulas are quoted by `guard`."""
    with atomic_file(path, newline="") as file:
        plain, quoted = (csv.writer(file, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        plain.writerow(header)
        for row in rows:
            cells = [guard(cell) if isinstance(cell, str) else cell for cell in row]
            has_return = any("\r" in cell for cell in cells if isinstance(cell, str))  # csv quotes it only as of 3.13
            (quoted if has_return else plain).writerow(cells)


def guard(cell: str) -> str:
    """Return a text with ' before it if a spreadsheet would run it as a formula (OWASP, CSV Injection).

    Such a text begins with = + - @, a tab or a line break. `unguard` returns the same text again.
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguard(cell: str) -> str:
    """Return the text that `guard` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def staging_folder(folder: Path) -> Path:
    """Create an empty folder next to `folder`, to be written and passed to `commit_folder`."""
    part = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def commit_folder(staging: Path, folder: Path) -> None:
    """Flush `staging` and its contents to disk, remove an existing `folder`, and rename `staging` to `folder`."""
    for path in (*staging.rglob("*"), staging):
        fsync(path)
    remove_folder(folder)
    staging.rename(folder)
    fsync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists; it is renamed first, so that a partly removed folder is never read."""
    if folder.exists():
        old = folder.with_name(folder.name + ".old" + PARTIAL)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)  # the only way to open a folder
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Yield a staging folder that is renamed to `to` at the end of the block, and removed after an error.

    Raises:
        FileExistsError: `to` exists and is not an empty folder.
        FolderInUseError: Another process writes it.
    """
    target = Path(os.path.abspath(to))
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(target.with_name(f"{target.name}.lock{PARTIAL}"), to):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{to} exists and is never overwritten; name another folder")
        part = staging_folder(target)
        try:
            with writing(to):
                yield part
                commit_folder(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
