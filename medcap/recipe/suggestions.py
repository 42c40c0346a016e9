"""The known name that a mistyped or abbreviated one stands for."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MIN_SIMILARITY = 0.6  # of letters, for a value: below it the list of allowed ones is clearer without a suggestion


def closest(name: str, known: Collection[str], preferred: Collection[str] = ()) -> str:
    """Return the most similar name: by its initials ("lr"), the beginnings of its words ("grad_acc"), or its letters.

    Among names with the same words, `preferred` ones come first.
    """
    return max(known, key=lambda candidate: _similarity(name, candidate, candidate in preferred))


def suggest(name: str, known: Collection[str]) -> str:
    """Return "did you mean ...? ", or "" if no known name is similar."""
    best = closest(name, known)
    has_initials, has_words, *_, letters = _similarity(name, best)
    return f"did you mean {best!r}? " if has_initials or has_words or letters >= MIN_SIMILARITY else ""


def _similarity(name: str, candidate: str, is_preferred: bool = False) -> tuple[bool, bool, bool, bool, float]:
    """Return values to compare: equal initials, equal words (from the first on, or preferred ones), equal letters."""
    name = name.lower().replace("-", "_")
    words, parts = name.split("_"), candidate.split("_")
    # a word of one letter is no abbreviation: "lr" is learning_rate, not lora_r
    has_initials = min(map(len, parts)) > 1 and len(parts) > 1 and name == "".join(part[0] for part in parts)
    has_words = len(name) > 1 and _begin_in_order(words, parts)
    is_first = has_words and parts[0].startswith(words[0])
    letters = difflib.SequenceMatcher(None, name, candidate).ratio()
    return has_initials, has_words, is_first, has_words and is_preferred, letters


def _begin_in_order(words: list[str], parts: list[str]) -> bool:
    """Return whether each word begins a part, in the same order: "grad_acc" and "gradient_accumulation_steps"."""
    rest = iter(parts)
    return all(word and any(part.startswith(word) for part in rest) for word in words)
