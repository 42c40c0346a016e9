"""Signatures: one line that states how a score was computed, in the manner of sacrebleu (Post 2018, W18-6319)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """Ordered pairs of key and value; two scores are comparable when their signatures agree."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **pairs: object) -> Signature:
        """Make a signature of `pairs` in the given order, without those whose value is None.

        Raises:
            ValueError: A value contains "|", which separates the pairs.
        """
        texts = {key: str(value) for key, value in pairs.items() if value is not None}
        if barred := [f"{key}={value}" for key, value in texts.items() if "|" in value]:
            raise ValueError(f"a signature separates its pairs by '|', so no value may contain it: {barred[0]!r}")
        return cls(tuple(texts.items()))

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read a signature as `str` writes it; raises ValueError for a part that is not "key:value"."""
        pairs = [part.partition(":") for part in text.split("|")]
        if wrong := [key for key, colon, _ in pairs if not colon]:
            raise ValueError(f"signature {text!r}: {wrong[0]!r} is not of the form key:value")
        return cls(tuple((key, value) for key, _, value in pairs))

    def get(self, key: str) -> str | None:
        """Return the value of `key`, or None."""
        return dict(self.pairs).get(key)

    def __str__(self) -> str:
        return "|".join(f"{key}:{value}" for key, value in self.pairs)
