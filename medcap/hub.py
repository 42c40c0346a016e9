"""Models and data sets from the Hub: requests with medcap's retries, and weights that are verified before use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_session, snapshot_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status
from safetensors import SafetensorError, safe_open

from medcap import retries
from medcap.io import cache_folder, file_digest
from medcap.logs import add_token, error_line

MAX_RETRY_SECONDS = 600.0  # no new attempt of a step after this time
REQUEST_TIMEOUT = 60.0  # seconds; huggingface_hub has no timeout by default
TRANSIENT_STATUSES = {409, 412, *retries.TRANSIENT_STATUSES}  # 409 and 412: two commits at the same time
SMALL_FILES = ("*.json", "*.txt", "*.yaml")  # configurations, tokenizer, recipe
_PERMANENT = {"UnsupportedProtocol", "LocalProtocolError"}  # of httpx: invalid HF_ENDPOINT or token

Result = TypeVar("Result")


class HubUnreachableError(OSError):
    """The Hub is unreachable or returns server errors; a later attempt may succeed."""


def retry(
    step: Callable[[], Result],
    max_attempts: int = retries.MAX_ATTEMPTS,
    offline_attempts: int = retries.OFFLINE_ATTEMPTS,
) -> Result:
    """Call `step` with a timeout, and with retries of transient errors."""

    def attempt() -> Result:
        _prepare_session()  # each time: the client replaces its session after some errors
        return step()

    return retries.retry(
        attempt,
        is_transient,
        max_attempts=max_attempts,
        max_seconds=MAX_RETRY_SECONDS,
        offline_attempts=offline_attempts,
        describe=lambda error: f"Hub: {_reason(error)}",
    )


def _prepare_session() -> None:
    """Set the timeout of huggingface_hub's session, and let transient errors reach `retry` at once.

    huggingface_hub itself would wait silently, without a limit, and ignore dates and fractions.
    """
    session = get_session()
    session.timeout = REQUEST_TIMEOUT
    hooks = session.event_hooks
    if _raise_transient not in hooks["response"]:
        session.event_hooks = {
            "request": [*hooks["request"], _redact_token],
            "response": [*hooks["response"], _raise_transient],
        }


def _raise_transient(response: Any) -> None:
    if response.status_code in retries.TRANSIENT_STATUSES:
        response.read()
        hf_raise_for_status(response)


def _redact_token(request: Any) -> None:
    add_token(request.headers.get("authorization", "").removeprefix("Bearer "))


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may help: not after the Hub refused a valid request."""
    if (status := retries.http_status(error)) is not None:
        # upload errors are wrapped in a RuntimeError; 400 then means that the bytes did not match their checksum
        return status in TRANSIENT_STATUSES or (status == 400 and isinstance(error, RuntimeError))
    chain = list(retries.causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) or type(cause).__name__ in _PERMANENT for cause in chain):
        return False
    if isinstance(error, (RuntimeError, json.JSONDecodeError)):
        return True
    return any(isinstance(cause, (HTTPError, ConnectionError, TimeoutError)) for cause in chain)


def local_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model or adapter, downloaded if it is on the Hub; its weights are verified.

    Args:
        name: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: There is no such folder or repository.
        HubUnreachableError: The Hub cannot be reached, and the model is not in the cache.
        ValueError: The weights are incomplete or damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = snapshot(name, revision, (*SMALL_FILES, "*.safetensors"))
        if not any(folder.glob("*.safetensors")):
            folder = snapshot(name, revision, (*SMALL_FILES, "*.bin"))
        for path in folder.iterdir():
            _check_sha256(path)
    for path in folder.glob("*.safetensors"):
        check_safetensors(path)
    return folder


def snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder in the cache with the files of a repository that match `patterns`, outside its subfolders.

    Without a connection it is an earlier download. Raises as `local_model`.
    """
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": ["*/*"]}
    try:
        snapshot_download(name, local_files_only=True, **options)
        attempts = 1  # without a connection, the files in the cache are used at once
    except LocalEntryNotFoundError:
        attempts = retries.MAX_ATTEMPTS
    with load_errors(f"no model {name!r}: no such local folder"):
        return Path(retry(lambda: snapshot_download(name, **options), attempts))


@contextmanager
def load_errors(message: str) -> Iterator[None]:
    """Raise the errors of a download as an OSError of one line that starts with `message`."""
    try:
        yield
    except Exception as error:  # the client raises errors of many types
        if type(error) is ValueError:  # written for the user
            raise
        raise load_error(message, error) from None


def load_error(message: str, error: Exception) -> OSError:
    """Return the error of one line for a failed download; it starts with `message`."""
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{message}, and no such revision on the Hub: {_reason(error)}")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{message}, and access to it on the Hub is restricted: {error_line(error)}")
    if isinstance(error, RepositoryNotFoundError) or retries.http_status(error) in (401, 404):
        return FileNotFoundError(f"{message}, and no such repository on the Hub; a private one needs HF_TOKEN")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in retries.causes(error)):
        return HubUnreachableError(f"{message}, not in the cache, and HF_HUB_OFFLINE is set")
    if is_transient(error):
        return HubUnreachableError(f"{message}, and the Hub ({ENDPOINT}) cannot be reached: {_reason(error)}")
    return OSError(f"{message}, and it cannot be downloaded from the Hub: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Return the status of the response or the first cause, without the advice of huggingface_hub."""
    if (response := retries.response(error)) is not None:
        return f"status {response.status_code} {response.reason_phrase} for {response.url}"
    *_, first = retries.causes(error)
    return error_line(first)


def check_safetensors(path: Path) -> None:
    """Raise ValueError unless the header describes exactly the bytes of the file."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is incomplete or damaged ({error}): download it again") from None


def _check_sha256(path: Path) -> None:
    """Raise ValueError if a file in the cache lacks the SHA-256 that the Hub gave; a verified file is remembered."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):  # of git, or a cache without links
        return
    status, marker = blob.stat(), cache_folder() / "verified" / blob.name
    state = f"{status.st_size} {status.st_mtime_ns}"
    if marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return
    if file_digest(blob) != blob.name:
        raise ValueError(f"{path.name} differs from the file on the Hub: remove {blob}, and it is downloaded again")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(state, encoding="utf-8")
