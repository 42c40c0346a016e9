"""Files and folders that bear their name only when they are whole and on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PART = ".part"  # at the end of a name: half written, or half removed; nobody reads it, and the next start removes it


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, sync it to the disk, and give it its own: nobody ever reads half of it."""
    part = path.with_name(path.name + PART)
    part.write_text(text, encoding="utf-8")
    fsync(part)
    part.replace(path)


def empty_part(folder: Path) -> Path:
    """An empty folder beside `folder` to write into, for `put_in_place`."""
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def put_in_place(part: Path, folder: Path) -> None:
    """Sync `part` and all in it to the disk, then give it the name `folder`, in the place of what had it."""
    for path in (*part.rglob("*"), part):  # everything is on the disk before the name appears
        fsync(path)
    remove(folder)
    part.rename(folder)
    fsync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a folder that may be absent: its name goes first, so that what is left of it is never taken for whole."""
    if folder.exists():
        going = folder.with_name(folder.name + ".old" + PART)
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)  # a folder can be opened in no other way
    os.fsync(descriptor)
    os.close(descriptor)
