"""Locks of output folders: one command at a time writes into a folder.

The operating system releases a lock when its process ends, however it ends. On a file system without locks a warning
replaces it, or filelock's lock by existence, which a killed process leaves behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from medcap.logs import redact

logger = logging.getLogger(__name__)

LOCK = ".medcap.lock"  # in the folder, while a command writes into it
GRACE = 10.0  # seconds that data loader workers may need to notice that their command was killed


class FolderInUseError(OSError):
    """Another command writes into the folder."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let no other command write into `folder` during the block. It is created, and removed if it stays empty.

    Raises:
        FolderInUseError: Another process holds the lock; the message names it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(folder / LOCK, folder):
            yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def lock_file(path: Path, name: Path) -> Iterator[None]:
    """Hold the lock `path` during the block; errors call what it protects `name`."""
    lock = FileLock(path)
    try:
        _acquire(lock, path, name)
    except FolderInUseError:
        raise
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): start no second command that writes into it", name, error)
        yield
        return
    try:
        if not isinstance(lock, SoftFileLock):  # its content is filelock's own
            path.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: no other process has the file that is removed
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, name: Path) -> None:
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        return
    holder = _read(path)
    try:
        lock.acquire(timeout=GRACE if _has_ended(holder) else 0)
    except Timeout:
        process = "another process"
        if holder:
            process = "process {pid} on {host}, started {started}: {command}".format_map(holder)
        raise FolderInUseError(f"{name} is in use by {process}. Wait until it ends, or use another folder") from None


def _this_process() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": redact(command)[:300],
    }


def _read(path: Path) -> dict[str, Any]:
    """Return what `_this_process` wrote; {} if it is being written or is of another program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content[key] for key in ("pid", "host", "started", "command")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _has_ended(holder: dict[str, Any]) -> bool:
    return holder.get("host") == platform.node() and not psutil.pid_exists(int(holder["pid"]))
