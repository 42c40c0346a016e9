"""Downloads against a local server with faults: the result is correct files or one error line."""

import contextlib
import email.utils
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medcap.data import download
from medcap.data.download import RECORD, download_hub, download_zenodo
from medcap.data.load import load_data
from medcap.locks import FolderInUseError, lock_folder
from medcap.phantom.dataset import write_phantom

NAMES = ["train_captions.csv", "train_images.zip", "valid_captions.csv", "test_captions.csv", "cui_mapping.csv"]
CONTENT = {name: name.encode() + bytes(range(256)) * (8 if name.endswith("csv") else 40_000) for name in NAMES}


class Zenodo(ThreadingHTTPServer):
    """Zenodo's API on localhost.

    `script` lists the faults of the next requests for each file; `requests` lists (file, Range header) of all.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.script, self.requests, self.custom_record = dict(files), {}, [], None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def record(self):
        if self.custom_record is not None:
            return self.custom_record
        return {"files": [self.entry(name) for name in self.files]}

    def entry(self, name, **changes):
        data = self.files[name]
        checksum = f"md5:{hashlib.md5(data).hexdigest()}"
        links = {"self": f"{self.url}/api/records/{RECORD}/files/{name}/content"}
        return {"key": name, "size": len(data), "checksum": checksum, "links": links, **changes}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.path == f"/api/records/{RECORD}":
                self.serve("record", json.dumps(self.server.record()).encode())
            else:
                name = self.path.split("/")[-2]
                self.server.requests.append((name, self.headers.get("Range")))
                self.serve(name, self.server.files[name])

    def serve(self, name, data):
        steps = self.server.script.get(name, [])
        fault = steps.pop(0) if steps else {}
        if fault.get("status"):
            return self.respond(fault["status"], b"", fault.get("headers", {}))
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(requested[1]) if requested and not fault.get("ignore_range") else 0
        body = fault.get("body", data)[start:]
        content_range = fault.get("range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        headers = {"Content-Range": content_range} if requested and not fault.get("ignore_range") else {}
        return self.respond(206 if headers else 200, body, headers, fault)

    def respond(self, status, body, headers, fault=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = (fault or {}).get("cut")
        if (fault or {}).get("slow"):
            for start in range(0, len(body), 1 << 16):
                self.wfile.write(body[start : start + (1 << 16)])
                time.sleep(0.02)
        else:
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def zenodo(monkeypatch):
    server = Zenodo(CONTENT)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("MEDCAP_ZENODO_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds passed to time.sleep, which returns at once."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_all_files_are_downloaded(zenodo, tmp_path):
    assert [path.name for path in download_zenodo(tmp_path / "new" / "data")] == NAMES
    assert files_in(tmp_path / "new" / "data") == CONTENT


def test_split_includes_files_of_no_split(zenodo, tmp_path):
    download_zenodo(tmp_path, ["valid"])
    assert sorted(files_in(tmp_path)) == ["cui_mapping.csv", "valid_captions.csv"]


def test_unknown_split_raises(zenodo, tmp_path):
    with pytest.raises(ValueError, match="no split 'tset': the record has train, valid, test"):
        download_zenodo(tmp_path, ["tset"])
    assert not zenodo.requests


def test_complete_files_are_not_requested_again(zenodo, tmp_path):
    download_zenodo(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    zenodo.requests.clear()
    download_zenodo(tmp_path)
    assert not zenodo.requests
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_different_file_of_same_name_raises_and_is_not_overwritten(zenodo, tmp_path):
    (tmp_path / "train_images.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"train_images.zip is not the record's file \(.* bytes, md5:.*\): move or"):
        download_zenodo(tmp_path)
    assert (tmp_path / "train_images.zip").read_bytes() == b"mine"


ZIP = "train_images.zip"
SIZE = len(CONTENT[ZIP])
# faults of successive responses, and the ranges that are requested
RECOVERIES = {
    "connection breaks twice": (
        [{"cut": 46 * 65536}, {"cut": 20 * 65536}],
        [None, "bytes=3014656-", "bytes=4325376-"],
    ),
    "connection breaks before the first byte": ([{"cut": 0}], [None, None]),
    "range is ignored": ([{"cut": 46 * 65536}, {"ignore_range": True}], [None, "bytes=3014656-"]),
    "wrong range": (
        [{"cut": 46 * 65536}, {"range": f"bytes 0-{SIZE - 1}/{SIZE}"}],
        [None, "bytes=3014656-", None],
    ),
    "wrong total": (
        [{"cut": 46 * 65536}, {"range": f"bytes 3014656-{SIZE - 1}/{SIZE + 1}"}],
        [None, "bytes=3014656-", None],
    ),
    "status 416": ([{"cut": 46 * 65536}, {"status": 416}], [None, "bytes=3014656-", None]),
    "wrong bytes once": ([{"body": bytes(SIZE)}], [None, None]),
    "too many bytes once": ([{"body": bytes(SIZE + 5)}], [None, None]),
    "too few bytes once": ([{"body": CONTENT[ZIP][:-5]}], [None, f"bytes={SIZE - 5}-"]),
    "transient status": ([{"status": status} for status in (429, 500, 502, 503, 504)], [None] * 6),
}


@pytest.mark.parametrize(("script", "ranges"), RECOVERIES.values(), ids=RECOVERIES)
def test_download_recovers_from_faults(zenodo, tmp_path, waits, script, ranges):
    zenodo.script[ZIP] = list(script)
    download_zenodo(tmp_path, ["train"])
    assert files_in(tmp_path)[ZIP] == CONTENT[ZIP]
    assert [range_ for name, range_ in zenodo.requests if name == ZIP] == ranges
    assert sorted(files_in(tmp_path)) == ["cui_mapping.csv", "train_captions.csv", ZIP]


def test_retry_after_is_honoured(zenodo, tmp_path, waits):
    soon = email.utils.formatdate(time.time() + 100, usegmt=True)
    zenodo.script["record"] = [{"status": 429, "headers": {"Retry-After": "7"}}]
    zenodo.script[ZIP] = [
        {"status": 503, "headers": {"Retry-After": soon}},
        {"status": 503, "headers": {"Retry-After": "x"}},
    ]
    download_zenodo(tmp_path, ["train"])
    assert waits[0] == 7
    assert 95 < waits[1] <= 100
    assert 0 < waits[2] <= 4


FAILURES = {
    "wrong checksum": (
        {ZIP: [{"body": bytes(SIZE)}] * 9},
        r"the checksum must be md5:\w+, but was md5:\w+ twice",
    ),
    "broken connection": ({ZIP: [{"cut": 0}] * 99}, r"content: the connection failed; no data in 8 attempts$"),
    "unavailable": ({ZIP: [{"status": 503}] * 99}, r"status 503 Service Unavailable; no data in 8 attempts$"),
    "too many bytes": ({ZIP: [{"body": bytes(SIZE + 1)}] * 99}, "the server sent more bytes than the record states"),
    "not found": ({ZIP: [{"status": 404}]}, r"train_images.zip/content: status 404 Not Found"),
    "forbidden": ({ZIP: [{"status": 403}]}, r"status 403 Forbidden"),
    "Retry-After of a day": (
        {ZIP: [{"status": 429, "headers": {"Retry-After": "86400"}}]},
        r"status 429 .*; the server asks to retry after 86400 seconds$",
    ),
}


@pytest.mark.parametrize(("script", "message"), FAILURES.values(), ids=FAILURES)
def test_permanent_fault_raises_one_line_and_leaves_no_file(zenodo, tmp_path, waits, script, message):
    zenodo.script.update({name: list(steps) for name, steps in script.items()})
    with pytest.raises(ValueError, match=message) as caught:
        download_zenodo(tmp_path, ["train"])
    assert "\n" not in str(caught.value)
    assert ZIP not in files_in(tmp_path)
    assert all(data == CONTENT[name] for name, data in files_in(tmp_path).items() if name in CONTENT)


def test_next_call_resumes_after_failure(zenodo, tmp_path, waits):
    zenodo.script[ZIP] = [{"cut": 46 * 65536}, *[{"cut": 0}] * 20]
    with pytest.raises(ValueError, match="no data in 8 attempts"):
        download_zenodo(tmp_path, ["train"])
    zenodo.script.clear()
    zenodo.requests.clear()
    download_zenodo(tmp_path, ["train"])
    assert zenodo.requests == [(ZIP, "bytes=3014656-")]
    assert files_in(tmp_path)[ZIP] == CONTENT[ZIP]


HOSTILE = {
    "parent folder": ({"key": "../evil.csv"}, "the unsafe file name '../evil.csv'"),
    "absolute path": ({"key": "/etc/evil.csv"}, "the unsafe file name '/etc/evil.csv'"),
    "backslash": ({"key": "..\\evil.csv"}, "the unsafe file name"),
    "hidden file": ({"key": ".bashrc"}, "the unsafe file name '.bashrc'"),
    "drive letter": ({"key": "C:evil"}, "the unsafe file name 'C:evil'"),
    "blank": ({"key": ""}, "the unsafe file name ''"),
    "long name": ({"key": "x" * 300}, "the unsafe file name 'xxx"),
    "partial file": ({"key": f"{ZIP}.part"}, "the unsafe file name 'train_images.zip.part'"),
    "name is a number": ({"key": 3}, "key must be a JSON str, got 3"),
    "same name twice": ({"key": ZIP}, "it lists 'train_images.zip' 2 times"),
    "same name in capitals": ({"key": ZIP.upper()}, "it lists 'train_images.zip' 2 times"),
    "no checksum": ({"checksum": ""}, "the checksum '' is not of md5, sha1, sha256, sha512"),
    "unknown checksum": ({"checksum": "crc:00"}, "the checksum 'crc:00' is not of md5"),
    "checksum of any length": ({"checksum": "shake_128:00"}, "the checksum 'shake_128:00' is not of md5"),
    "short checksum": ({"checksum": "md5:00"}, "the checksum 'md5:00' is not of md5"),
    "checksum is a number": ({"checksum": 5}, "checksum must be a JSON str, got 5"),
    "negative size": ({"size": -1}, "size must be 0 to .*, got -1;"),
    "infinite size": ({"size": float("inf")}, "size must be a JSON int, got inf"),
    "size is not a number": ({"size": float("nan")}, "size must be a JSON int, got nan"),
    "size is a text": ({"size": "12"}, "size must be a JSON int, got '12'"),
    "size is true": ({"size": True}, "size must be a JSON int, got True"),
    "huge size": ({"size": 10**4000}, "size must be 0 to .*, got 1000000"),
    "no address": ({"links": {}}, "self must be a JSON str, got 'nothing'"),
    "links are a list": ({"links": []}, r"links must be a JSON dict, got \[\]"),
    "file protocol": ({"links": {"self": "file:///etc/passwd"}}, "only https is allowed"),
    "http": ({"links": {"self": "http://example.org/x"}}, "only https is allowed"),
    "invalid address": ({"links": {"self": "https://["}}, "Invalid IPv6 URL"),
}


@pytest.mark.parametrize(("changes", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_record_writes_nothing(zenodo, tmp_path, changes, message):
    zenodo.custom_record = {"files": [zenodo.entry(ZIP), zenodo.entry("train_captions.csv", **changes)]}
    with pytest.raises(ValueError, match=f"^http.*: not the description of a record: .*{message}") as raised:
        download_zenodo(tmp_path / "data", ["train"])
    assert "\n" not in str(raised.value)
    assert not zenodo.requests
    assert files_in(tmp_path) == {}


NO_RECORDS = {
    "HTML": b"<html>",
    "files are an object": b'{"files": {}}',
    "file is a text": b'{"files": ["x"]}',
    "no files": b'{"files": []}',
    "deep JSON": b'{"files":' + b"[" * 200_000,
    "not UTF-8": b'{"files": "\xff"}',
    "number of many digits": b'{"files": ' + b"9" * 5000 + b"}",
    "large": b'{"files": []' + b" " * 11_000_000 + b"}",
}


@pytest.mark.parametrize("body", NO_RECORDS.values(), ids=NO_RECORDS)
def test_other_response_is_not_a_record(zenodo, tmp_path, body):
    zenodo.script["record"] = [{"body": body}]
    with pytest.raises(ValueError, match=r"api/records/\d+: not the description of a record: ") as raised:
        download_zenodo(tmp_path / "data", ["train"])
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    assert files_in(tmp_path) == {}


def test_broken_description_of_a_record_is_requested_again(zenodo, tmp_path, waits):
    zenodo.script["record"] = [{"cut": 20}, {"cut": 0}]
    download_zenodo(tmp_path, ["train"])
    assert len(waits) == 2


def test_redirect_to_http_is_refused(zenodo, tmp_path):
    zenodo.script[ZIP] = [
        {"status": 302, "headers": {"Location": f"http://127.1.1.1:{zenodo.server_port}/a/{ZIP}/content"}}
    ]
    with pytest.raises(ValueError, match="http://127.1.1.1.*: only https is allowed"):
        download_zenodo(tmp_path, ["train"])
    assert ZIP not in files_in(tmp_path)


def test_redirect_is_followed(zenodo, tmp_path):
    zenodo.script[ZIP] = [{"status": 302, "headers": {"Location": f"{zenodo.url}/elsewhere/{ZIP}/content"}}]
    download_zenodo(tmp_path, ["train"])
    assert files_in(tmp_path)[ZIP] == CONTENT[ZIP]


def test_too_little_disk_space_raises_before_download(zenodo, tmp_path, monkeypatch):
    (tmp_path / f"{ZIP}.part").write_bytes(CONTENT[ZIP][:-1000])
    missing = 1000 + sum(len(CONTENT[name]) for name in ("train_captions.csv", "cui_mapping.csv"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=missing - 1))
    with pytest.raises(ValueError, match=r"0\.00 GB must be downloaded, and 0\.00 GB are free"):
        download_zenodo(tmp_path, ["train"])
    assert not zenodo.requests
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=missing))
    download_zenodo(tmp_path, ["train"])
    assert (ZIP, f"bytes={SIZE - 1000}-") in zenodo.requests


def test_second_download_into_same_folder_is_refused(zenodo, tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(FolderInUseError, match=f"{tmp_path} is in use by process {os.getpid()}"),
    ):
        download_zenodo(tmp_path)
    assert not zenodo.requests


COMMAND = [sys.executable, "-m", "medcap.cli", "data", "download", "--source", "zenodo"]


def test_command_downloads_data_set_that_loads(zenodo, tmp_path):
    write_phantom(tmp_path / "source", train=3, valid=2, test=2)
    zenodo.files = files_in(tmp_path / "source")
    done = subprocess.run([*COMMAND, "--out", tmp_path / "copy"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "copy" / name) for name in zenodo.files]
    assert "train_images.zip" in done.stderr  # the progress bar
    assert {split: len(rows) for split, rows in load_data(tmp_path / "copy").items()} == {
        "train": 3,
        "valid": 2,
        "test": 2,
    }


def test_command_reports_failure_in_one_line(zenodo, tmp_path):
    zenodo.script["record"] = [{"status": 404}]
    done = subprocess.run([*COMMAND, "--out", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"medcap: error: .*{RECORD}: status 404 Not Found\n", done.stderr)
    assert not (tmp_path / "x").exists()


def test_download_resumes_after_kill(zenodo, tmp_path):
    zenodo.script[ZIP] = [{"slow": True}]
    running = subprocess.Popen([*COMMAND, "--out", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / f"{ZIP}.part"
    deadline = time.monotonic() + 60
    while (not part.exists() or part.stat().st_size < 1 << 20) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    have = part.stat().st_size
    assert 0 < have < SIZE
    assert ZIP not in files_in(tmp_path)
    download_zenodo(tmp_path)
    assert zenodo.requests[-1] == (ZIP, f"bytes={have}-")
    assert files_in(tmp_path) == CONTENT


def test_only_requested_splits_of_mirror_are_downloaded(monkeypatch, tmp_path):
    calls = []

    def snapshot(name, *, dry_run=False, **options):
        calls.append((name, dry_run, options["allow_patterns"]))
        if dry_run:
            return []
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "validation-00000-of-00001.parquet").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert [path.name for path in download_hub(tmp_path, ["valid"])] == ["validation-00000-of-00001.parquet"]
    assert calls == [(download.HUB_ID, dry, ["data/validation-*.parquet"]) for dry in (True, False)]
    with pytest.raises(ValueError, match="no split 'tset': the mirror has train, valid, test"):
        download_hub(tmp_path, ["tset"])
