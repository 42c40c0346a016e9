"""Logging setup, error messages of one line and the redaction of tokens.

This module imports nothing slow: `configure_logging` must run before the libraries it configures are imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

from medcap.disk import MAKE_SPACE, DiskFullError, disk_full

TOKEN = "hf_[A-Za-z0-9]{30,}"  # pattern of a Hub token; errors of libraries may quote the headers of a request
MIN_TOKEN = 8  # characters; a shorter value, such as "true", is also an ordinary word
_SECRET_VARIABLE = re.compile(r"(TOKEN|API_KEY|ACCESS_KEY|SECRET|SECRET_KEY|PASSWORD)$")
_URL_LOGIN = re.compile(r"(?<=://)(?<!zip://)[^/\s\"'<>]+(?=@)")  # user:password of a URL
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MOVES = re.compile(r"(\n|\x1b\[A)+")  # what tqdm writes to reach the line of a bar
_used_tokens: set[str] = set()  # from requests; the Hub's client can also obtain a token from the network
_USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)  # their messages need no type
ADVICE = "run again with --debug for the traceback"


def configure_logging() -> None:
    """Silence libraries except for errors, and redact tokens in all output; the messages of medcap remain."""
    redact_streams()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each retry of a request is logged twice
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "torch", "accelerate", "transformers", "datasets", "evaluate", "peft", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_ProgressHandler()])
    if os.environ.get("RANK", "0") != "0":  # only the main process logs
        logging.disable(logging.WARNING)
        os.environ["TQDM_DISABLE"] = "1"


class _ProgressHandler(logging.StreamHandler):
    """Writes to stderr, above a progress bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # which reads TQDM_DISABLE when it is imported

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def report_errors(debug: bool = False) -> Iterator[None]:
    """Exit with one line and a status instead of a traceback: 2 for a RecipeError, 1 for any other error.

    Of several processes, only the first one to fail prints its error: the others usually fail as a consequence.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("\nmedcap: interrupted\n")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if _is_first_failure():
            advice = "" if isinstance(error, _USER_ERRORS) and str(error) else f" ({ADVICE})"
            if disk_full(error) and not isinstance(error, DiskFullError):  # of a library, such as in its cache
                advice = f". Please {MAKE_SPACE}, then run the same command again"
            sys.stderr.write(f"medcap: error: {error_line(error)}{advice}\n")
        sys.exit(2 if type(error).__name__ == "RecipeError" else 1)


def _is_first_failure() -> bool:
    """Whether no other process of this launch has failed; the launcher's store counts the failures."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"medcap/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:  # the launcher has exited
        return True


def error_line(error: BaseException) -> str:
    """Describe an error in one line without tokens.

    The type is added unless the message was written for the user. The cause is added to a RuntimeError.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading", without a reason
        text = f"{text} {error.__cause__}"
    line = " ".join(redact(text).split())
    return line if line and isinstance(error, _USER_ERRORS) else f"{type(error).__name__}: {line or 'no message'}"


@contextmanager
def named_errors(source: object, *unchanged: type[Exception]) -> Iterator[None]:
    """Turn errors that an invalid file causes in libraries into a ValueError of one line that names `source`.

    Errors written for the user are raised as they are: OSError, ValueError (except of decoders) and `unchanged`.
    """
    unchanged_errors: tuple[type[BaseException], ...] = (OSError, MemoryError, *unchanged)
    try:
        yield
    except unchanged_errors:
        raise
    except Exception as error:  # KeyError, TypeError, RecursionError, SafetensorError, UnpicklingError, ...
        if isinstance(error, ValueError) and not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            raise
        name = type(error).__name__
        raise ValueError(
            f"{source} cannot be used: {name}: {error_line(error).removeprefix(name + ': ')[:300]}"
        ) from error


def redact(text: str) -> str:
    """Replace tokens (see `token_pattern`) and the user and password of URLs."""
    return _URL_LOGIN.sub("(token)", token_pattern().sub("(token)", text))


def token_pattern() -> re.Pattern[str]:
    """Return a pattern of the tokens in use, whatever their format, and of all texts that look like a Hub token.

    In use are the values of environment variables such as HF_TOKEN and WANDB_API_KEY, the token file of the Hub, and
    `add_token`. They also match as parts of a URL, of a Python literal and of JSON.
    """
    tokens = {token for token in (*_secret_values(), *_used_tokens) if len(token) >= MIN_TOKEN}
    forms = {form for token in tokens for form in _written_forms(token)}
    known = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
    return re.compile("|".join([*known, TOKEN]), re.IGNORECASE)  # the general pattern may match only a part


def add_token(token: str) -> None:
    """Redact `token` from now on."""
    _used_tokens.add(token)


def _secret_values() -> Iterator[str]:
    yield from (value.strip() for name, value in os.environ.items() if _SECRET_VARIABLE.search(name))
    with suppress(OSError, ValueError, ImportError):  # `get_token` of huggingface_hub may send requests
        from huggingface_hub.constants import HF_TOKEN_PATH

        with open(HF_TOKEN_PATH, encoding="utf-8") as file:
            yield file.read().strip()


def _written_forms(token: str) -> tuple[str, ...]:
    return token, quote(token, safe=""), quote_plus(token), repr(token)[1:-1], json.dumps(token)[1:-1]


def visible(text: str) -> str:
    r"""Replace control, bidirectional and half characters by \uXXXX: they could change what a terminal shows.

    Newlines and tabs remain. Inside JSON, \uXXXX is the same text.
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(text: str) -> str:
    """Return `visible` text, except for what progress bars write: moves, and returns at the start or the end."""
    if _MOVES.fullmatch(text):
        return text
    start, end = len(text) - len(text.lstrip("\r")), len(text.rstrip("\r"))
    return text[:start] + visible(text[start:end]) + text[max(start, end) :]


class _SafeStream:
    """A text stream that redacts tokens and makes control characters visible, except those of progress bars."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_escaped(redact(text)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_streams() -> None:
    """Redact and make visible all that is written to stdout and stderr: tracebacks, warnings, logs, results."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), _SafeStream):
            setattr(sys, name, _SafeStream(stream))
