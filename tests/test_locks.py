"""Two commands in one folder: the second one stops with a line that names the first, and changes nothing."""

import os
import signal
import subprocess
import sys

import pytest

from medcap import locks
from medcap.io import new_folder
from medcap.locks import LOCK, FolderInUseError, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from medcap.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of the folder `run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "--hub_token", f"hf_{'a' * 34}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_until_the_first_is_killed(other_process, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FolderInUseError) as refused, lock_folder(run):
        pass
    line = str(refused.value)
    assert line.startswith(f"{run} is in use by process {other_process.pid} on ")
    assert "started 20" in line
    assert "--hub_token (token)." in line
    assert "hf_" not in (run / LOCK).read_text()
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    with lock_folder(run):
        assert (run / LOCK).exists()
    assert list(run.iterdir()) == []


def test_new_folder_is_removed_if_it_stays_empty(tmp_path):
    with lock_folder(tmp_path / "runs" / "empty"):
        pass
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path / "runs" / "full"):
        (tmp_path / "runs" / "full" / "file").touch()
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["full", "file"]


def test_lock_of_an_ended_command_is_waited_for(tmp_path, monkeypatch):
    """A data loader worker of the killed command holds it for a moment."""
    waited, acquire = [], locks.FileLock.acquire

    def acquire_later(self, timeout):
        waited.append(timeout)
        if timeout == 0:
            raise locks.Timeout("held")
        return acquire(self, timeout)

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        content = locks.json.dumps(locks._this_process())
    (tmp_path / LOCK).write_text(content)
    monkeypatch.setattr(locks.FileLock, "acquire", acquire_later)
    with lock_folder(tmp_path):
        assert waited == [0, locks.GRACE]


def test_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(self, timeout):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.FileLock, "acquire", unsupported)
    with lock_folder(tmp_path):
        assert "cannot be locked ([Errno 95] Operation not supported): start no second command" in caplog.text


def test_two_releases_into_one_folder_do_not_mix(tmp_path):
    with new_folder(tmp_path / "release") as part:
        (part / "first").touch()
        with pytest.raises(FolderInUseError, match="release is in use by process"), new_folder(tmp_path / "release"):
            pass
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["release", "release/first"]
