"""Errors of a full disk: one line with the path, the space, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, or the limit of file sizes
MAKE_SPACE = "free some space (or raise the quota or the limit of file sizes)"


class DiskFullError(OSError):
    """A file could not be written for lack of space; the message says what to do."""


@contextmanager
def writing(path: Path, needed: int | None = None, then: str = "run the same command again") -> Iterator[None]:
    """Turn the error of a full disk, which often names no path, into a DiskFullError.

    Args:
        path: The file or folder that the block writes.
        needed: Its size in bytes, if known.
        then: What to do when there is space.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:  # safetensors, torch and Pillow raise their own errors
        if not (reason := disk_full(error)):
            raise
        raise DiskFullError(full_disk_line(path, reason, needed, then)) from error


def full_disk_line(path: Path, reason: str, needed: int | None, then: str) -> str:
    """Return the one line about a full disk; `reason` is of `disk_full`, the others as for `writing`."""
    free = shutil.disk_usage(nearest_folder(path)).free
    space = f"{megabytes(needed)} needed, " if needed else ""
    return f"{path} could not be written: {reason} ({space}{megabytes(free)} free). Please {MAKE_SPACE}, then {then}"


def disk_full(error: BaseException | None) -> str:
    """Return why `error`, or the error that caused it, is one of a full disk, such as "File too large"; else ""."""
    while error is not None:
        for code in FULL:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def nearest_folder(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists. Raises NotADirectoryError if that is a file."""
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path} cannot be created: {nearest} is a file")
    return nearest


def megabytes(size: int) -> str:
    """Return bytes as text in MB, or in GB from 1 GB on."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
