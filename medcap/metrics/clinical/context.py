"""Assertion of findings: negated, possible, historical or an indication, by the ConText algorithm.

Harkema et al. (2009), J Biomed Inform 42:839. A cue before a finding (forward) or after it (backward) holds up to the
end of the sentence or a word that ends its scope. Three rules are added for captions, which contain long lists: an
item that begins with an article, side or size after a comma or "and" ends a scope, unless "or" follows;
a finding after "of the" or "in the" is known ("no enhancement of the mass"); resolved findings count as negated.
The cues are in `medcap/data/lexicons/context.csv`.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import accumulate

from medcap.data.terms import IGNORED, Lexicon, Mention, Words, normalize, read_rows

PRESENT, NEGATED = "present", "negated"
ASSERTIONS = (NEGATED, "indication", "historical", "possible")  # the first one counts if there are several
_REACH = 12  # words between a finding and a cue after it
_KNOWN_REACH = 6  # words from "of the" to a known finding
_AUXILIARIES = {"is", "are", "was", "were", "has", "have", "had", "been"}
_BREAKS = ("or", "nor", "and", "to")
_ROWS = read_rows("context")


def _lexicon(*kinds: str) -> Lexicon:
    rows = [row for row in _ROWS if row["kind"] in kinds]
    return Lexicon(
        (IGNORED if row["term"] == IGNORED else f"{row['kind']} {row['term']}", row["synonyms"]) for row in rows
    )


_CUES = _lexicon("forward", "prefix", "backward", "pseudo", "end")
_PREPOSITIONS = _lexicon("preposition")
_OPENERS, _EXCEPTIONS = (
    {normalize(word.strip()) for row in _ROWS if row["kind"] == kind for word in row["synonyms"].split(";")}
    for kind in ("opener", "exception")
)
_ABBREVIATION = re.compile(r"\b(?:fig|figs|approx|vs|dr|ca|st|i\.e|e\.g)$", re.IGNORECASE)
_CLAUSE = re.compile(r":|—|\s–\s")
_SENTENCE_END = re.compile(r"\.(?=\s|\(|$)|[;?!]|\.(?=[A-Z])")


class Context:
    """The cues and the punctuation of one text."""

    def __init__(self, text: str, words: Words) -> None:
        """Find the sentences and commas between the `words` of `text`."""
        self._words = words
        self._tokens = [normalize(word) for word in words.words]
        ends = [0, *(end for _, end in words.spans)]
        self._gaps = [text[end:start] for end, (start, _) in zip(ends, words.spans, strict=False)]
        is_new = [self._is_sentence_end(text, index, words.spans[index]) for index in range(len(self._gaps))]
        self._sentence = list(accumulate(map(int, is_new)))

    def _is_sentence_end(self, text: str, index: int, span: tuple[int, int]) -> bool:
        """Return whether a sentence ends in the gap before the word `index`."""
        gap = self._gaps[index]
        if gap.startswith(".") and _ABBREVIATION.search(text[max(0, span[0] - len(gap) - 8) : span[0] - len(gap)]):
            return False
        return _SENTENCE_END.search(gap + text[span[0]]) is not None

    @cached_property
    def _cues(self) -> list[Mention]:
        return list(_CUES.mentions(self._words))

    @cached_property
    def _prepositions(self) -> list[Mention]:
        return list(_PREPOSITIONS.mentions(self._words))

    def assertion(self, finding: Mention) -> str:
        """Return one of `ASSERTIONS`, or "present"."""
        found: set[str] = set()
        for cue in self._cues:
            direction, _, category = cue.term.partition(" ")
            if direction != "end" and self._sentence[cue.start] == self._sentence[finding.start]:
                found.update({category} if self._holds(direction, cue, finding) else ())
        return next((category for category in ASSERTIONS if category in found), PRESENT)

    def _holds(self, direction: str, cue: Mention, finding: Mention) -> bool:
        if direction == "prefix":  # "non-obstructive"
            return cue.end == finding.start
        return self._holds_before(cue, finding) if direction == "forward" else self._holds_after(cue, finding)

    def _holds_before(self, cue: Mention, finding: Mention) -> bool:
        """Return whether the scope of a forward cue reaches a finding after it or around it."""
        if cue.start >= finding.end or self._has_end(cue.end, finding.start, "end"):
            return False
        if any(_CLAUSE.search(self._gaps[at]) for at in range(cue.end + 1, finding.start + 1)):
            return False
        if any(self._opens_item(at, cue.end) for at in range(cue.end + 1, finding.start + 1)):
            return False
        return not self._is_known(cue.end, finding.start)

    def _holds_after(self, cue: Mention, finding: Mention) -> bool:
        """Return whether the scope of a backward cue reaches a finding before it."""
        between = range(finding.end, cue.start + 1)
        if not 0 <= cue.start - finding.end <= _REACH or self._has_end(finding.end, cue.start, "end all scopes"):
            return False
        commas = [at for at in between if "," in self._gaps[at]]
        item = self._tokens[commas[-1] : cue.start] if commas else []  # the last item of a list, or only "were"
        if commas and not {"or", "and", "nor"} & set(item) and not set(item) <= _AUXILIARIES:
            return False
        return not self._is_known(max(0, finding.start - 4), finding.start)

    def _has_end(self, start: int, end: int, prefix: str) -> bool:
        return any(cue.term.startswith(prefix) and start <= cue.start < end for cue in self._cues)

    def _opens_item(self, at: int, first: int) -> bool:
        """Return whether the word `at` begins an item that no longer belongs to the list after a cue."""
        begins = "," in self._gaps[at] or (at - 1 > first and self._tokens[at - 1] == "and")
        return begins and self._is_opener(at) and not self._list_continues(at)

    def _is_opener(self, at: int) -> bool:
        return self._tokens[at] in _OPENERS or self._tokens[at].isdecimal()

    def _list_continues(self, at: int) -> bool:
        """Return whether "or" follows in the same sentence before a word that ends a scope."""
        for word in range(at, len(self._tokens)):
            if self._sentence[word] != self._sentence[at] or self._has_end(word, word + 1, "end"):
                return False
            if self._tokens[word] in ("or", "nor"):
                return True
        return False

    def _is_known(self, start: int, end: int) -> bool:
        """Return whether "of the" or the like stands before the word `end`, in the same item of a list."""
        breaks = [at for at in range(start + 1, end) if "," in self._gaps[at] or self._tokens[at] in _BREAKS]
        start = breaks[-1] if breaks else start
        return any(
            start < at.start and at.end <= end and self._tokens[at.start - 1] not in _EXCEPTIONS
            for at in self._prepositions
            if at.end >= end - _KNOWN_REACH
        )
