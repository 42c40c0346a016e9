"""Files and folders that bear their name only when they are whole and on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = (
    ".part"  # at the end of a name: half written, or half removed; nobody reads it, and the next start removes it
)


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, sync it to the disk, and give it its own: nobody ever reads half of it."""
    part = path.with_name(path.name + PARTIAL)
    part.write_text(text, encoding="utf-8")
    fsync(part)
    part.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole: under another name first, so that nobody ever reads half a file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def staging_folder(folder: Path) -> Path:
    """An empty folder beside `folder` to write into, for `commit_folder`."""
    part = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def commit_folder(part: Path, folder: Path) -> None:
    """Sync `part` and all in it to the disk, then give it the name `folder`, in the place of what had it."""
    for path in (*part.rglob("*"), part):  # everything is on the disk before the name appears
        fsync(path)
    remove(folder)
    part.rename(folder)
    fsync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a folder that may be absent: its name goes first, so that what is left of it is never taken for whole."""
    if folder.exists():
        going = folder.with_name(folder.name + ".old" + PARTIAL)
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)  # a folder can be opened in no other way
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Give a folder beside `to` to write into; at the end it is synced to the disk and gets the name `to`.

    Raises FileExistsError for a `to` that holds something. After an error in between nothing is left behind.
    """
    target = Path(os.path.abspath(to))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{to} exists: a release is never written over; name another folder")
    part = staging_folder(target)
    try:
        yield part
        commit_folder(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
