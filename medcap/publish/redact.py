"""What must never be shown: tokens."""

from __future__ import annotations

import os
import re

from huggingface_hub import get_token

from medcap.quiet import TOKEN


def token_pattern() -> re.Pattern[str]:
    """A pattern for whatever looks like a token of the Hub, and for the one that is in use whatever it looks like."""
    given = {os.environ.get(name) or "" for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")} | {get_token() or ""}
    known = [re.escape(token) for token in sorted(given) if len(token) > 7]
    return re.compile("|".join([*known, TOKEN.pattern]))  # the whole of a known one, before what it begins with


def one_line(error: BaseException) -> str:
    """What went wrong in one line, with its cause where it names none, and without any token."""
    text = str(error)
    if not isinstance(error, (OSError, ValueError, RuntimeError)):  # "'url'", which is a KeyError
        text = f"{type(error).__name__}: {text}"
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading", and not why
        text = f"{text} {error.__cause__}"
    return token_pattern().sub("(token)", " ".join(text.split())) or type(error).__name__
