"""Retry of transient network errors."""

from __future__ import annotations

import errno
import logging
import math
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from medcap.logs import error_line

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 8
OFFLINE_ATTEMPTS = 3  # if this machine has no network
MAX_BACKOFF = 60.0  # seconds
MAX_RETRY_AFTER = 600.0  # seconds; an error whose response asks for a longer wait is raised at once
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NO_NETWORK = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
_SECONDS = re.compile(r"\d+(\.\d*)?", re.ASCII)
_EXHAUSTED = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", re.ASCII)

Result = TypeVar("Result")


# stamina cannot reset its count of attempts when bytes arrived
def retry(
    step: Callable[[], Result],
    is_transient: Callable[[Exception], bool],
    progress: Callable[[], int] = lambda: 0,
    max_attempts: int = MAX_ATTEMPTS,
    max_seconds: float = math.inf,
    offline_attempts: int = OFFLINE_ATTEMPTS,
    describe: Callable[[Exception], str] = error_line,
) -> Result:
    """Call `step` until it succeeds; raise its error if that is not transient or the attempts are used up.

    The pause is the one that the server asks for, or else grows exponentially with jitter. Each retry is logged.

    Args:
        step: One attempt.
        is_transient: Whether another attempt may succeed after this error.
        progress: Number of bytes received so far; when it has grown, the count of attempts starts again.
        max_attempts: Number of attempts without progress.
        max_seconds: No new attempt starts after this time.
        offline_attempts: Number of attempts if this machine has no network and nothing was received.
        describe: Returns the text of an error in the log.
    """
    attempts, received, started = 0, progress(), time.monotonic()
    while True:
        try:
            return step()
        except Exception as error:
            attempts = 1 if progress() > received else attempts + 1
            received = max(progress(), received)
            pause = retry_after(error)
            limit = min(offline_attempts, max_attempts) if is_offline(error) and not received else max_attempts
            is_final = attempts >= limit or time.monotonic() - started > max_seconds
            if is_final or (pause or 0) > MAX_RETRY_AFTER or not is_transient(error):
                raise
            if pause is None:
                pause = min(2.0 ** (attempts - 1), MAX_BACKOFF) * random.uniform(0.5, 1.5)
            logger.warning(
                "%s; attempt %d of %d follows in %.0f s", describe(error)[:300], attempts + 1, limit, math.ceil(pause)
            )
            time.sleep(pause)


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that caused `error`, or None."""
    found = response(error)
    return None if found is None else int(found.status_code)


def retry_after(error: BaseException | None) -> float | None:
    """Return the seconds that the server asks to wait, or None.

    The header Retry-After is a number or a date (RFC 9110, section 10.2.3). Without it, the header RateLimit gives the
    time until an exhausted quota is renewed (draft-ietf-httpapi-ratelimit-headers-09).
    """
    headers = getattr(response(error), "headers", {})
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        waits = _EXHAUSTED.findall(headers.get("RateLimit", ""))
        return max(map(float, waits), default=None)


def is_offline(error: BaseException | None) -> bool:
    """Return whether this machine has no network: a name cannot be resolved, or no route exists."""
    return any(
        isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.errno in _NO_NETWORK)
        for cause in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it, also those that libraries hide with `from None`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def response(error: BaseException | None) -> Any:
    """Return the response of an error of requests or huggingface_hub, or of its causes."""
    found = (getattr(cause, "response", None) for cause in causes(error))
    return next((one for one in found if one is not None), None)
