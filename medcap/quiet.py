"""A terminal without other people's noise, and errors of one line.

Nothing is imported here that takes time: `hush` has to run before the libraries that it quietens are imported.
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

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")  # of the Hub; libraries may quote a request with it


def hush() -> None:
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


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """End the program with one line and a status instead of a traceback: 2 for a wrong recipe, 1 for failed work."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("\nmedcap: stopped\n")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"medcap: error: {one_line(error)}\n")
        sys.exit(2 if type(error).__name__ == "RecipeError" else 1)


def one_line(error: Exception) -> str:
    """What went wrong, in one line; the kind of error too where it is not one that was written for the user."""
    text = _TOKEN.sub("(token)", " ".join(str(error).split()))
    if isinstance(error, (ValueError, OSError, FloatingPointError)) and text:
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
