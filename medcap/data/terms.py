"""Terms in captions, matched as complete words from lexicons in CSV files.

A lexicon has the columns `term`, `synonyms` (separated by semicolons), `kind` and `source`. A synonym is a word or a
phrase; hyphens and slashes between its words count as spaces. In a synonym

    opacit*     is any word that begins so, `*itis` any word that ends so, and `?` one arbitrary word
    MRI         in capitals, matches only capitals, or any case in a text without capitals; others match any case

Plural and singular are the same, and so are British and American spellings (oedema, edema). At each position the
longest synonym counts, and its words are not part of another term: `renal pelvis` is not `pelvis`. The synonyms of the
term `(ignored)` mean nothing, `left + right` is two terms, and `*` is the word itself.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("lexicons")
COLUMNS = ("term", "synonyms", "kind", "source")
IGNORED, ITSELF = "(ignored)", "*"
_WORD = re.compile(r"[^\W_]+")
_JOINING = re.compile(r"[\s/'’*-]*|–")
_BRACKETS = re.compile(r"\s*[()\[\]]+[\s/–-]*")
_END = ""  # key of a node's terms
Node = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """The words of a text, with the position of each.

    Attributes:
        words: Sequences of letters and digits.
        spans: Start and end of each word in the text.
        joined: Whether only spaces, hyphens or slashes separate a word from the one before.
        bracketed: Whether a bracket does.
    """

    words: list[str]
    spans: list[tuple[int, int]]
    joined: list[bool]
    bracketed: list[bool]


@dataclass(frozen=True)
class Mention:
    """A term in a text, and the words `start` to `end` (exclusive) that name it."""

    term: str
    start: int
    end: int


def split_words(text: str) -> Words:
    """Split a text into words: sequences of letters and digits."""
    matches = list(_WORD.finditer(text))
    ends = [0, *(match.end() for match in matches)]
    gaps = [text[end : match.start()] for end, match in zip(ends, matches, strict=False)]
    joined = [_JOINING.fullmatch(gap) is not None for gap in gaps]
    bracketed = [_BRACKETS.fullmatch(gap) is not None for gap in gaps]
    return Words([match[0] for match in matches], [match.span() for match in matches], joined, bracketed)


class Lexicon:
    """Terms by synonym, as a tree of words."""

    def __init__(self, rows: Iterable[tuple[str, str]], brackets: bool = False) -> None:
        """Build the tree from pairs of a term and its synonyms, separated by semicolons.

        With `brackets`, a synonym also matches words with a bracket between them: "tomography (CT) angiography".
        """
        self._brackets = brackets
        self._root: Node = {}
        self._stems: set[str] = set()
        self._keys: dict[tuple[str, str], tuple[str, ...]] = {}
        for term, synonyms in rows:
            for synonym in filter(None, map(str.strip, synonyms.split(";"))):
                self._add(term, synonym)

    def _add(self, term: str, synonym: str) -> None:
        node = self._root
        for word in re.findall(r"[^\W_]+\*?|\*[^\W_]+|\?", synonym):
            key = word if word.isupper() and "*" not in word else _stem(word) if "*" in word else normalize(word)
            self._stems.update({key} if "*" in key else ())
            node = node.setdefault(key, {})
        terms = node.setdefault(_END, [])
        terms.extend(value for value in term.split(" + ") if value != IGNORED and value not in terms)

    def mentions(self, words: Words) -> Iterator[Mention]:
        """Yield the terms in a text from left to right."""
        is_lower = all(word.islower() or word.isdecimal() for word in words.words)
        texts = [(word, word.upper() if is_lower else word) for word in words.words]
        keys = [self._keys.get(text) or self._keys_of(*text) for text in texts]
        joined = list(map(max, words.joined, words.bracketed)) if self._brackets else words.joined
        start = 0
        while start < len(keys):
            end, terms = _longest(self._root, keys, joined, start, start) if keys[start] else (start, ())
            for term in terms:
                yield Mention(normalize(words.words[start]) if term == ITSELF else term, start, end)
            start = max(end, start + 1)

    def _keys_of(self, word: str, capitals: str) -> tuple[str, ...]:
        """Return the keys of the tree that a word matches, complete words first and long stems before short ones."""
        lower = normalize(word)
        ends = range(min(len(lower), max(map(len, self._stems), default=0)), 1, -1)
        stems = [f"{lower[:end]}*" for end in ends] + [f"*{lower[-end:]}" for end in ends]
        found = (word, lower, capitals, *(stem for stem in stems if stem in self._stems), "?")
        return self._keys.setdefault((word, capitals), tuple(dict.fromkeys(found)))


def _longest(
    node: Node, keys: Sequence[Sequence[str]], joined: Sequence[bool], first: int, at: int
) -> tuple[int, Sequence[str]]:
    """Return the end of the longest synonym that continues `node` with the word `at`, and its terms."""
    best = (at, node[_END]) if _END in node else (first, ())
    if at == len(keys) or (at > first and not joined[at]):
        return best
    for key in keys[at]:
        if key in node:
            end, terms = _longest(node[key], keys, joined, first, at + 1)
            if end > best[0]:
                best = (end, terms)
    return best


@cache
def read_lexicon(name: str) -> Lexicon:
    """Return the lexicon in `lexicons/NAME.csv`."""
    rows = [(row["term"], row["synonyms"]) for row in read_rows(name)]
    return Lexicon(rows, brackets=name == "modality")


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of `lexicons/NAME.csv`."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def normalize(word: str) -> str:
    """Return a word in lower case, American spelling and singular: masses, arteries, but not thrombus."""
    word = _stem(word)
    if word.endswith("sses"):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _stem(word: str) -> str:
    """Return a word or stem in lower case and American spelling."""
    lower = word.lower()
    return re.sub(r"(?<=[a-z])[ao]e(?=[a-z]{2})|^oe(?=[a-z]{3})", "e", lower).replace("tumour", "tumor")
