"""Signatures: one line that states how a score was computed, as in sacrebleu (Post 2018, W18-6319)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """Ordered pairs of key and value. Scores with equal signatures are comparable."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **pairs: object) -> Signature:
        """Return the signature of `pairs` without those whose value is None; ValueError for "|" in a value."""
        texts = {key: str(value) for key, value in pairs.items() if value is not None}
        if wrong := [f"{key}={value}" for key, value in texts.items() if "|" in value]:
            raise ValueError(f"a value of a signature must not contain '|', which separates pairs: {wrong[0]!r}")
        return cls(tuple(texts.items()))

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read the text of a signature; ValueError for a part that is not "key:value"."""
        pairs = [part.partition(":") for part in text.split("|")]
        if wrong := [key for key, colon, _ in pairs if not colon]:
            raise ValueError(f"signature {text!r}: {wrong[0]!r} is not key:value")
        return cls(tuple((key, value) for key, _, value in pairs))

    def get(self, key: str) -> str | None:
        """Return the value of `key`, or None."""
        return dict(self.pairs).get(key)

    def __str__(self) -> str:
        return "|".join(f"{key}:{value}" for key, value in self.pairs)
