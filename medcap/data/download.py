"""Download ROCOv2: from Zenodo, resumable and verified, or from its mirror on the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

from medcap.data import SPLITS
from medcap.io import PARTIAL, file_digest
from medcap.locks import lock_folder
from medcap.logs import error_line
from medcap.retries import (
    MAX_ATTEMPTS,
    MAX_RETRY_AFTER,
    TRANSIENT_STATUSES,
    http_status,
    is_offline,
    retry,
    retry_after,
)

RECORD = 10821435
HUB_ID = "eltorio/ROCOv2-radiology"
CHECKSUMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}  # number of hexadecimal digits
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}")
_MAX_SIZE = 1 << 50  # bytes of all files
_MAX_RECORD = 10_000_000  # bytes of the description of a record
_CHUNK = 1 << 16  # bytes; an incomplete chunk is lost when the connection breaks
_TIMEOUT = (15, 60)  # seconds to connect, and between two reads
_BROKEN_CONNECTION = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)

Result = TypeVar("Result")
Field = TypeVar("Field")


@dataclass(frozen=True)
class RemoteFile:
    """A file of the record; `size` in bytes, `checksum` as "md5:..."."""

    name: str
    size: int
    checksum: str
    url: str


class _IncompleteError(requests.ConnectionError):
    """The response does not complete the file."""


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Refuse a redirect that leaves https."""
        target = super().get_redirect_target(resp)
        if target:
            _check_url(urljoin(resp.url, target))
        return target


def download_zenodo(out: Path, splits: Sequence[str] = SPLITS, parallel: int = 4) -> list[Path]:
    """Download the Zenodo record's files of `splits`, and those that belong to no split.

    Names, sizes and checksums come from Zenodo's REST API (developers.zenodo.org, "Records"); the environment variable
    MEDCAP_ZENODO_URL replaces https://zenodo.org. Each file is written to `NAME.part`. The next attempt or call
    requests only the missing bytes (RFC 9110, section 14), and the file is renamed once its size and checksum are
    correct. Complete files are verified and not downloaded again.

    Args:
        out: Folder of the files.
        splits: Of train, valid and test.
        parallel: Number of simultaneous downloads.

    Returns:
        The paths of the files.

    Raises:
        ValueError: An unknown split, a different file of the same name, too little disk space, a checksum that is
            wrong twice, or a server that does not answer.
        FolderInUseError: Another process downloads into the folder.
    """
    with _Session() as session:
        files = _select_files(_record_files(session), splits)
        with lock_folder(out):
            missing = [file for file in files if not _is_complete(file, out)]
            _check_disk_space(sum(file.size - _size(_partial_path(file, out)) for file in missing), out)
            _fetch_all(session, missing, out, parallel)
    return [out / file.name for file in files]


def download_hub(out: Path, splits: Sequence[str] = SPLITS) -> list[Path]:
    """Download the parquet files of `splits` from the Hub's mirror into `out`; return their paths.

    huggingface_hub resumes and verifies, and skips complete files.

    Raises:
        ValueError: An unknown split, or too little disk space.
        OSError: The download failed.
    """
    from huggingface_hub import snapshot_download

    from medcap import hub

    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"no split {unknown[0]!r}: the mirror has {', '.join(SPLITS)}")
    patterns = [f"data/{'validation' if split == 'valid' else split}-*.parquet" for split in splits]
    options: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": patterns, "local_dir": out}
    with lock_folder(out), hub.load_errors(f"{HUB_ID} was not downloaded"):
        plan = hub.retry(lambda: snapshot_download(HUB_ID, dry_run=True, **options))
        _check_disk_space(sum(file.file_size for file in plan if file.will_download), out)
        hub.retry(lambda: snapshot_download(HUB_ID, **options))
    return sorted(path for pattern in patterns for path in out.glob(pattern))


def _record_files(session: requests.Session) -> list[RemoteFile]:
    """Return the files of the record. Raises ValueError, before anything is written, unless it lists usable files."""
    url = f"{os.environ.get('MEDCAP_ZENODO_URL', 'https://zenodo.org').rstrip('/')}/api/records/{RECORD}"
    _check_url(url)
    content = _with_retries(lambda: _content(session, url), url)
    try:
        files = [_remote_file(entry) for entry in _field(json.loads(content), "files", list)]
        _check_files(files)
    except (ValueError, RecursionError) as error:  # RecursionError: from deeply nested JSON
        reason = error_line(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{url}: not the description of a record: {reason}; nothing was downloaded") from None
    return files


def _content(session: requests.Session, url: str) -> bytes:
    content = b""
    with closing(_request(session, url, {})) as response:
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if len(content) > _MAX_RECORD:
                raise ValueError(f"{url}: not the description of a record: more than {_MAX_RECORD:,} bytes")
    return content


def _field(entry: Any, key: str, kind: type[Field]) -> Field:
    """Return `entry[key]`. Raises ValueError unless `entry` is an object and its value a `kind`."""
    if not isinstance(entry, dict) or type(value := entry.get(key)) is not kind:
        found = repr(entry.get(key, "nothing") if isinstance(entry, dict) else entry)
        raise ValueError(f"{key} must be a JSON {kind.__name__}, got {found[:100]}")
    return value


def _remote_file(entry: Any) -> RemoteFile:
    """Return a listed file. Raises ValueError unless it has a plain name, a size, a known checksum and an address."""
    name, url = _field(entry, "key", str), _field(_field(entry, "links", dict), "self", str)
    size, checksum = _field(entry, "size", int), _field(entry, "checksum", str).lower()
    if not _FILE_NAME.fullmatch(name) or name.endswith(PARTIAL):
        raise ValueError(f"the unsafe file name {name[:300]!r}")
    algorithm, _, digest = checksum.partition(":")
    if algorithm not in CHECKSUMS or not re.fullmatch(f"[0-9a-f]{{{CHECKSUMS[algorithm]}}}", digest):
        raise ValueError(f"{name}: the checksum {checksum[:150]!r} is not of {', '.join(CHECKSUMS)}")
    if not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"{name}: size must be 0 to {_MAX_SIZE:,}, got {str(size)[:30]}")
    _check_url(url)
    return RemoteFile(name, size, checksum, url)


def _check_files(files: Sequence[RemoteFile]) -> None:
    """Raise ValueError for an empty record, and for a name that is listed twice (file systems may ignore case)."""
    if not files:
        raise ValueError("it lists no file")
    name, count = Counter(file.name.lower() for file in files).most_common(1)[0]
    if count > 1:
        raise ValueError(f"it lists {name!r} {count} times")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"{url!r}: only https is allowed")


def _select_files(files: Sequence[RemoteFile], splits: Sequence[str]) -> list[RemoteFile]:
    """Return the files of `splits`, and those that belong to no split (licenses, concept names)."""
    prefix = {file: file.name.replace("validation_", "valid_").partition("_")[0] for file in files}
    available = [split for split in SPLITS if split in prefix.values()]
    if unknown := [split for split in splits if split not in available]:
        raise ValueError(f"no split {unknown[0]!r}: the record has {', '.join(available)}")
    return [file for file in files if prefix[file] in splits or prefix[file] not in SPLITS]


def _is_complete(file: RemoteFile, out: Path) -> bool:
    """Return whether the file is complete. Raises ValueError for a different file of the same name."""
    path = out / file.name
    if not path.exists():
        return False
    if path.stat().st_size != file.size or _checksum(path, file) != file.checksum:
        raise ValueError(f"{path} is not the record's file ({file.size:,} bytes, {file.checksum}): move or remove it")
    return True


def _check_disk_space(needed: int, out: Path) -> None:
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(f"{out}: {needed / 1e9:.2f} GB must be downloaded, and {free / 1e9:.2f} GB are free")


def _partial_path(file: RemoteFile, out: Path) -> Path:
    return out / f"{file.name}{PARTIAL}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_all(session: requests.Session, files: Sequence[RemoteFile], out: Path, parallel: int) -> None:
    """Download all files; the first failure stops the others, and partial files remain for the next call."""
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
    """Download one file, a second time if its checksum is wrong, and rename it."""
    part, checksum = _partial_path(file, out), ""
    for _ in range(2):
        with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, position=row) as bar:
            _with_retries(partial(_resume, session, file, part, bar, stop), file.url, lambda: _size(part))
        checksum = _checksum(part, file)
        if checksum == file.checksum:
            part.replace(out / file.name)
            return
        part.unlink()
    raise ValueError(
        f"{file.url}: the checksum must be {file.checksum}, but was {checksum} twice; the file is deleted"
    )


def _with_retries(step: Callable[[], Result], url: str, progress: Callable[[], int] = lambda: 0) -> Result:
    """Call `step` with retries; errors are one line with the URL. pooch would restart a broken download at byte 0."""
    try:
        return retry(step, _is_transient, progress, describe=lambda error: f"{url}: {_cause(error)}")
    except (requests.HTTPError, *_BROKEN_CONNECTION) as error:
        cause = _cause(error)
        if (pause := retry_after(error) or 0) > MAX_RETRY_AFTER:
            cause += f"; the server asks to retry after {pause:.0f} seconds"
        elif _is_transient(error) and not is_offline(error):
            cause += f"; no data in {MAX_ATTEMPTS} attempts"
        raise ValueError(f"{url}: {cause}") from None


def _cause(error: Exception) -> str:
    """Return the cause of an error without the names of classes in urllib3."""
    if isinstance(error, (_IncompleteError, requests.HTTPError)):
        return str(error)
    if is_offline(error):
        return "this machine has no network connection, or the name of the server is wrong"
    return "timeout" if isinstance(error, requests.Timeout) else "the connection failed"


def _is_transient(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return http_status(error) in TRANSIENT_STATUSES
    return isinstance(error, _BROKEN_CONNECTION)


def _resume(session: requests.Session, file: RemoteFile, part: Path, bar: tqdm, stop: threading.Event) -> None:
    """Request the bytes that `part` lacks and append them; _IncompleteError if it is not complete then."""
    start = _size(part) if _size(part) <= file.size else 0
    if start < file.size or not start:
        with closing(_request(session, file.url, {"Range": f"bytes={start}-"} if start else {})) as response:
            start = _first_byte(response, file, part, start)
            bar.n = start
            with part.open("ab" if start else "wb") as target:
                _append(response, target, file.size - start, bar, stop)
                target.flush()
                os.fsync(target.fileno())
    if (size := _size(part)) != file.size:
        raise _IncompleteError(f"the connection ended after {size:,} of {file.size:,} bytes")
    bar.n = file.size
    bar.refresh()


def _request(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """Return a response of status 200, 206 or 416. Raises HTTPError for any other."""
    identity = {"Accept-Encoding": "identity"}  # the bytes of the file, not compressed
    response = session.get(url, headers={**identity, **headers}, stream=True, timeout=_TIMEOUT)
    if response.status_code not in (200, 206, 416):
        response.close()
        raise requests.HTTPError(f"status {response.status_code} {response.reason}", response=response)
    return response


def _first_byte(response: requests.Response, file: RemoteFile, part: Path, start: int) -> int:
    """Return the position of the response's first byte. If it is not `start`, `part` is deleted."""
    if response.status_code == 200:  # the complete file, whatever was requested
        return 0
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header)
    if not start or not match or int(match[1]) != start or match[3] not in ("*", str(file.size)):
        part.unlink(missing_ok=True)
        raise _IncompleteError(f"status {response.status_code} with range {header!r} instead of bytes {start}-")
    return start


def _append(response: requests.Response, target: Any, missing: int, bar: tqdm, stop: threading.Event) -> None:
    for chunk in response.iter_content(_CHUNK):
        if stop.is_set():
            raise ValueError("stopped, because another file failed")
        target.write(chunk)
        bar.update(len(chunk))
        missing -= len(chunk)
        if missing < 0:  # a different file
            target.truncate(0)
            raise _IncompleteError("the server sent more bytes than the record states")


def _checksum(path: Path, file: RemoteFile) -> str:
    """Return the checksum of `path` in the algorithm and notation of `file.checksum`."""
    algorithm = file.checksum.partition(":")[0]
    return f"{algorithm}:{file_digest(path, algorithm)}"
