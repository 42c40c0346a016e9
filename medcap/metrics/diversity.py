"""Diversity and length of a set of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionSummary:
    """Diversity and length of a set of captions; fractions are 0 to 1.

    Attributes:
        distinct: Number of different captions.
        most_frequent_fraction: Fraction of images with the most frequent caption.
        repeated_fraction: Fraction of captions that repeat a trigram.
        length_ratio: Tokens of the predictions over those of the closest references.
        brevity_penalty: Factor of BLEU for short captions.
        cut_fraction: Fraction of captions that end at the token limit.
    """

    distinct: int
    most_frequent: str
    most_frequent_fraction: float
    mean_words: float
    repeated_fraction: float
    length_ratio: float | None = None
    brevity_penalty: float | None = None
    cut_fraction: float | None = None


def describe_captions(predictions: Sequence[str]) -> CaptionSummary:
    """Return the fields of a summary that do not need references."""
    caption, count = Counter(predictions).most_common(1)[0]
    return CaptionSummary(
        distinct=len(set(predictions)),
        most_frequent=caption,
        most_frequent_fraction=count / len(predictions),
        mean_words=sum(len(text.split()) for text in predictions) / len(predictions),
        repeated_fraction=sum(map(repeats_trigram, predictions)) / len(predictions),
    )


def sameness(predictions: Sequence[str]) -> str:
    """Return a one-line warning if all images have the same caption, else ""."""
    if len(predictions) < 2 or len(set(predictions)) > 1:
        return ""
    return (
        f"all {len(predictions)} captions are the same, {predictions[0]!r}: the captions do not depend on the image; "
        "train longer, raise learning_rate, or include the cross-attention in lora_target_modules"
    )


def repeats_trigram(caption: str) -> bool:
    """Return whether a caption contains the same three consecutive words twice."""
    words = caption.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) < len(trigrams)
