"""A folder that appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medcap.whole import empty_part, put_in_place


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """Give a folder beside `to` to write into; at the end it is synced to the disk and gets the name `to`.

    Raises FileExistsError for a `to` that holds something. After an error in between nothing is left behind.
    """
    target = Path(os.path.abspath(to))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{to} exists: a release is never written over; name another folder")
    part = empty_part(target)
    try:
        yield part
        put_in_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
