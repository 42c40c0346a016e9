"""A terminal without other people's noise, and errors of one line.

Nothing slow is imported here: `configure_logging` runs before the libraries that it configures are imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

TOKEN = re.compile("hf_[A-Za-z0-9]{30,}")  # of the Hub; libraries may quote a request with it


def configure_logging() -> None:
    """Keep what libraries print on import and at work from the terminal; what medcap says, and errors, still come."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # every retry of a request is a line, twice
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "torch", "accelerate", "transformers", "datasets", "evaluate", "peft", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
        logging.disable(logging.WARNING)
        os.environ["TQDM_DISABLE"] = "1"


@contextmanager
def report_errors(debug: bool = False) -> Iterator[None]:
    """End the program with one line and a status instead of a traceback: 2 for a wrong recipe, 1 for failed work.

    Of several processes only the first to fail says why: the others fail because they lost it, or of the same cause.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("\nmedcap: stopped\n")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if _fails_first():
            sys.stderr.write(f"medcap: error: {one_line(error)}\n")
        sys.exit(2 if type(error).__name__ == "RecipeError" else 1)


def _fails_first() -> bool:
    """Whether no other process of this launch has failed before; they all count in the store of their launcher."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"medcap/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:  # the launcher is gone
        return True


def one_line(error: Exception) -> str:
    """What went wrong, in one line; the kind of error too where it is not one that was written for the user."""
    text = TOKEN.sub("(token)", " ".join(str(error).split()))
    if isinstance(error, (ValueError, OSError, FloatingPointError, MemoryError)) and text:
        return text
    return f"{type(error).__name__}: {text or 'no message'} (run again with --debug for where)"


@contextmanager
def named_errors(where: object, *passing: type[Exception]) -> Iterator[None]:
    """Turn whatever files lead to that are not what they should be into ValueError: in one line, which and what.

    What was written for the user passes as it is: OSError, ValueError but for those of decoders, and `passing`.
    """
    passes: tuple[type[BaseException], ...] = (OSError, MemoryError, *passing)
    try:
        yield
    except passes:
        raise
    except Exception as error:  # KeyError, TypeError, RecursionError, SafetensorError, UnpicklingError, ...
        if isinstance(error, ValueError) and not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            raise
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"{where} cannot be used: {type(error).__name__}: {cause}") from error


def token_pattern() -> re.Pattern[str]:
    """A pattern for whatever looks like a token of the Hub, and for the one that is in use whatever it looks like."""
    from huggingface_hub import get_token

    given = {os.environ.get(name) or "" for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")} | {get_token() or ""}
    known = [re.escape(token) for token in sorted(given) if len(token) > 7]
    return re.compile("|".join([*known, TOKEN.pattern]))  # the whole of a known one, before what it begins with


def redacted_line(error: BaseException) -> str:
    """What went wrong in one line, with its cause where it names none, and without any token."""
    text = str(error)
    if not isinstance(error, (OSError, ValueError, RuntimeError)):  # "'url'", which is a KeyError
        text = f"{type(error).__name__}: {text}"
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading", and not why
        text = f"{text} {error.__cause__}"
    return token_pattern().sub("(token)", " ".join(text.split())) or type(error).__name__
