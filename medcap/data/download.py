"""ROCOv2 onto one's disk: from Zenodo, resumable and verified, or from its mirror on the Hub."""

from __future__ import annotations

import email.utils
import hashlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

RECORD = 10821435
HUB_ID = "eltorio/ROCOv2-radiology"
SPLITS = ("train", "valid", "test")
ATTEMPTS = 8  # in a row in which not one byte comes
MAX_RETRY_AFTER = 600  # seconds that a server's Retry-After may ask for
_BUSY = {408, 429, 500, 502, 503, 504}
_CHUNK = 1 << 16  # what came of an unfinished chunk is lost when a connection breaks
_TIMEOUT = (15, 60)  # seconds to connect, and between two bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file of the record: its name, size in bytes, checksum ("md5:..."), and where its content is."""

    name: str
    size: int
    checksum: str
    url: str


class _AgainError(Exception):
    """One attempt failed, another may not; `wait` is the seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _Session(requests.Session):
    """Follows no redirection that would leave https."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target:
            _check_url(urljoin(resp.url, target))
        return target


def download_zenodo(out: Path, splits: Sequence[str] = SPLITS, parallel: int = 4) -> list[Path]:
    """Download the record's files of `splits`, and those of no split, into the folder `out`; return their paths.

    Names, sizes and checksums are those of Zenodo's REST API (developers.zenodo.org, "Records"); the environment
    variable MEDCAP_ZENODO_URL replaces https://zenodo.org. `parallel` files come at once, each into `NAME.part`; after
    a break the next attempt, or the next call, asks for what is missing (RFC 9110, section 14), and only a file of the
    right size and checksum gets its name. Complete files are verified and left alone. Progress on stderr.

    Raises ValueError or OSError, one line: a split that is not there, another file under a name, too little space,
    a checksum that is wrong twice, a server that does not answer, another download into the same folder.
    """
    with _Session() as session:
        files = _wanted(_record(session), splits)
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".download.lock", timeout=0)
        try:
            with lock:
                missing = [file for file in files if not _is_there(file, out)]
                _check_space(missing, out)
                _fetch_all(session, missing, out, parallel)
        except Timeout:
            raise ValueError(f"{out}: another download into this folder is running") from None
    (out / ".download.lock").unlink(missing_ok=True)
    return [out / file.name for file in files]


def download_hub(out: Path, splits: Sequence[str] = SPLITS) -> list[Path]:
    """Download the parquet files of `splits` of the Hub's mirror into `out`; return their paths.

    huggingface_hub resumes and verifies; what is complete is left alone. Raises ValueError for a split that is not
    there or too little space, and what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"no split {unknown[0]!r}: there are {', '.join(SPLITS)}")
    names = ["validation" if split == "valid" else split for split in splits]
    patterns = [f"data/{name}-*.parquet" for name in names]
    options: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": patterns, "local_dir": out}
    plan = snapshot_download(HUB_ID, dry_run=True, **options)
    _check_disk_space(sum(file.file_size for file in plan if file.will_download), out)
    snapshot_download(HUB_ID, **options)
    return sorted(path for pattern in patterns for path in out.glob(pattern))


def _record(session: requests.Session) -> list[RemoteFile]:
    """Return the files that the record lists; ValueError for an answer that is none."""
    url = f"{os.environ.get('MEDCAP_ZENODO_URL', 'https://zenodo.org').rstrip('/')}/api/records/{RECORD}"
    _check_url(url)
    answer = _persistently(lambda: _ask(session, url, {}), url)
    try:
        with closing(answer):
            listed = answer.json()["files"]
        files = [RemoteFile(f["key"], int(f["size"]), f["checksum"], f["links"]["self"]) for f in listed]
    except (ValueError, KeyError, TypeError, requests.RequestException) as error:
        raise ValueError(f"{url}: not the description of a record ({type(error).__name__})") from None
    for file in files:
        _check_file(file)
    if not files:
        raise ValueError(f"{url}: the record lists no file")
    return files


def _check_file(file: RemoteFile) -> None:
    """Raise ValueError for what a server must not make us do: write elsewhere, or fetch by another protocol."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]*", file.name):
        raise ValueError(f"the record lists a file called {file.name!r}: not a plain name, nothing was downloaded")
    if file.checksum.partition(":")[0] not in hashlib.algorithms_guaranteed or file.size < 0:
        raise ValueError(f"{file.name}: no checksum that can be verified: {file.checksum!r}, {file.size} bytes")
    _check_url(file.url)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"{url}: only https is downloaded from")


def _wanted(files: Sequence[RemoteFile], splits: Sequence[str]) -> list[RemoteFile]:
    """Return the files of `splits`, and those that belong to no split (licences, names of concepts)."""
    of = {file: file.name.replace("validation_", "valid_").partition("_")[0] for file in files}
    there = [split for split in SPLITS if split in of.values()]
    if lacking := [split for split in splits if split not in there]:
        raise ValueError(f"no split {lacking[0]!r}: the record has {', '.join(there)}")
    return [file for file in files if of[file] in splits or of[file] not in SPLITS]


def _is_there(file: RemoteFile, out: Path) -> bool:
    """Whether the file is there and right; ValueError for another file in its place."""
    path = out / file.name
    if not path.exists():
        return False
    if path.stat().st_size == file.size and _digest(path, file).hexdigest() == file.checksum.partition(":")[2]:
        return True
    raise ValueError(f"{path} is not the record's file ({file.size:,} bytes, {file.checksum}): move or remove it")


def _check_space(missing: Sequence[RemoteFile], out: Path) -> None:
    parts = [_part(file, out) for file in missing]
    have = sum(part.stat().st_size for part in parts if part.exists())
    _check_disk_space(sum(file.size for file in missing) - have, out)


def _check_disk_space(needed: int, out: Path) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"{out}: {needed / 1e9:.2f} GB are still to come and {free / 1e9:.2f} GB are free")


def _part(file: RemoteFile, out: Path) -> Path:
    return out / f"{file.name}.part"


def _fetch_all(session: requests.Session, files: Sequence[RemoteFile], out: Path, parallel: int) -> None:
    """Fetch all files; the first that fails stops the others, whose parts stay for the next call."""
    stop = threading.Event()
    with ThreadPoolExecutor(parallel) as pool:
        tasks = [pool.submit(_fetch, session, file, out, stop, row) for row, file in enumerate(files)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(session: requests.Session, file: RemoteFile, out: Path, stop: threading.Event, row: int) -> None:
    """Fetch one file, twice if its checksum is wrong, and give it its name when it is right."""
    part, found = _part(file, out), ""
    for _ in range(2):
        found = _digest_of_download(session, file, part, stop, row)
        if found == file.checksum.partition(":")[2]:
            part.replace(out / file.name)
            return
        part.unlink()
    raise ValueError(f"{file.url}: its checksum should be {file.checksum} and was {found}, twice; nothing was kept")


def _digest_of_download(
    session: requests.Session, file: RemoteFile, part: Path, stop: threading.Event, row: int
) -> str:
    """Bring `part` to its full size and return the checksum of what is on the disk."""
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, position=row, leave=True) as bar:

        def attempt() -> None:
            _continue(session, file, part, bar, stop)

        _persistently(attempt, file.url, lambda: part.stat().st_size if part.exists() else 0)
    return _digest(part, file).hexdigest()


# stamina cannot reset its count of attempts when bytes arrived, and pooch restarts a broken download from byte 0
def _persistently(attempt: Any, url: str, progress: Any = lambda: 0) -> Any:
    """Call `attempt` until it succeeds, waiting longer each time; ValueError after `ATTEMPTS` without progress."""
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except (
            _AgainError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            failures = 1 if progress() > before else failures + 1
            before = max(progress(), before)
            if failures >= ATTEMPTS:
                raise ValueError(f"{url}: given up after {failures} attempts without a byte: {_in_words(e)}") from None
            asked = getattr(e, "wait", None)
            time.sleep(asked if asked is not None else min(2**failures, 60) * random.uniform(0.5, 1))


def _in_words(error: Exception) -> str:
    if isinstance(error, _AgainError):
        return str(error)
    return "no answer in time" if isinstance(error, requests.Timeout) else "the connection broke or could not be made"


def _continue(session: requests.Session, file: RemoteFile, part: Path, bar: Any, stop: threading.Event) -> None:
    """Ask for the bytes that `part` lacks and append them; _AgainError unless it is whole then."""
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    if have < file.size or not part.exists():
        with closing(_ask(session, file.url, {"Range": f"bytes={have}-"} if have else {})) as answer:
            have = _start(answer, file, part, have)
            bar.n = have
            with part.open("ab") as target:
                _append(answer, target, file.size - have, bar, stop)
                target.flush()
                os.fsync(target.fileno())
    if (size := part.stat().st_size) != file.size:
        raise _AgainError(f"the connection ended after {size:,} of {file.size:,} bytes")
    bar.n = file.size
    bar.refresh()


def _ask(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """Return an answer of status 200, 206 or 416; _AgainError when the server is busy, ValueError for another."""
    identity = {"Accept-Encoding": "identity"}  # or the bytes would not be those of the file
    answer = session.get(url, headers={**identity, **headers}, stream=True, timeout=_TIMEOUT)
    if answer.status_code in _BUSY:
        answer.close()
        raise _AgainError(f"status {answer.status_code}", _retry_after(answer, url))
    if answer.status_code not in (200, 206, 416):
        answer.close()
        raise ValueError(f"{url}: status {answer.status_code} {answer.reason}")
    return answer


def _retry_after(answer: requests.Response, url: str) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3)."""
    text = answer.headers.get("Retry-After", "")
    if text.isdigit():
        seconds = float(text)
    else:
        try:
            seconds = max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0)
        except (ValueError, TypeError):
            return None
    if seconds > MAX_RETRY_AFTER:
        raise ValueError(f"{url}: status {answer.status_code}, to be asked again in {seconds:.0f} seconds; try later")
    return seconds


def _start(answer: requests.Response, file: RemoteFile, part: Path, have: int) -> int:
    """Return the position at which the answer's bytes go on; what was there is dropped when they do not fit it."""
    if answer.status_code == 200:  # the whole file, whatever was asked for
        part.unlink(missing_ok=True)
        return 0
    said = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", said)
    if not have or not found or int(found[1]) != have or found[3] not in ("*", str(file.size)):
        part.unlink(missing_ok=True)
        raise _AgainError(f"status {answer.status_code} with the range {said!r} where bytes {have}- were asked for")
    return have


def _append(answer: requests.Response, target: Any, missing: int, bar: Any, stop: threading.Event) -> None:
    for chunk in answer.iter_content(_CHUNK):
        if stop.is_set():
            raise ValueError("stopped, because another file failed")
        target.write(chunk)
        bar.update(len(chunk))
        missing -= len(chunk)
        if missing < 0:  # what came is of another file: all of it is dropped
            target.truncate(0)
            raise _AgainError("more bytes came than the record says")


def _digest(path: Path, file: RemoteFile) -> Any:
    digest = hashlib.new(file.checksum.partition(":")[0])
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest
