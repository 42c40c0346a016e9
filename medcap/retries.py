"""Retry of transient network errors."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

MAX_ATTEMPTS = 8
MAX_BACKOFF = 60.0  # seconds
MAX_RETRY_AFTER = 600.0  # seconds; an error whose response asks for a longer wait is raised at once
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}

Result = TypeVar("Result")


# stamina cannot reset its count of attempts when bytes arrived
def retry(
    step: Callable[[], Result],
    is_transient: Callable[[Exception], bool],
    progress: Callable[[], int] = lambda: 0,
    max_attempts: int = MAX_ATTEMPTS,
    max_seconds: float = math.inf,
) -> Result:
    """Call `step` until it succeeds; raise its error if that is not transient or the attempts are used up.

    The pause is the server's Retry-After, or else grows exponentially with jitter.

    Args:
        step: One attempt.
        is_transient: Whether another attempt may succeed after this error.
        progress: Number of bytes received so far; when it has grown, the count of attempts starts again.
        max_attempts: Number of attempts without progress.
        max_seconds: No new attempt starts after this time.
    """
    attempts, received, started = 0, progress(), time.monotonic()
    while True:
        try:
            return step()
        except Exception as error:
            attempts = 1 if progress() > received else attempts + 1
            received = max(progress(), received)
            pause = retry_after(error)
            is_final = attempts >= max_attempts or time.monotonic() - started > max_seconds
            if is_final or (pause or 0) > MAX_RETRY_AFTER or not is_transient(error):
                raise
            backoff = min(2.0 ** (attempts - 1), MAX_BACKOFF) * random.uniform(0.5, 1.5)
            time.sleep(backoff if pause is None else pause)


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that caused `error`, or None."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def retry_after(error: BaseException | None) -> float | None:
    """Return the seconds of the Retry-After header, which is a number or a date (RFC 9110, section 10.2.3)."""
    text = getattr(_response(error), "headers", {}).get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _response(error: BaseException | None) -> Any:
    """Return the response of an error of requests or huggingface_hub, or of its causes."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__
    return None
