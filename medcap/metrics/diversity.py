"""How varied a set of captions is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def describe_captions(predictions: Sequence[str]) -> dict[str, float | int | str]:
    """How varied captions are: an adapter that says one sentence for every picture shows here."""
    caption, count = Counter(predictions).most_common(1)[0]
    return {
        "distinct": len(set(predictions)),
        "most_frequent": caption,
        "most_frequent_share": count / len(predictions),
        "mean_words": sum(len(text.split()) for text in predictions) / len(predictions),
        "repeated_share": sum(map(_repeats, predictions)) / len(predictions),
    }


def sameness(predictions: Sequence[str]) -> str:
    """What to say where every picture got the same caption, in one line; "" where they did not."""
    if len(predictions) < 2 or len(set(predictions)) > 1:
        return ""
    return (
        f"all {len(predictions)} captions are the same, {predictions[0]!r}: the model does not tell pictures apart; "
        "train longer, raise learning_rate, or let lora_target_modules reach the cross-attention"
    )


def _repeats(caption: str) -> bool:
    """Whether a caption says three words in a row twice."""
    words = caption.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) < len(trigrams)
