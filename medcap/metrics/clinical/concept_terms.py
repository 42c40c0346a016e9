"""Names of a data set's own concepts (`cui_mapping.csv`) as further terms of findings and regions.

The file has no semantic types. A name that contains a term of a region is that region by all its spellings; a name
without any known term is a finding if its last word is one of a disease.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medcap.data.concepts import synonyms
from medcap.data.terms import Lexicon, read_lexicon, read_rows, split_words

_DISEASE = re.compile(
    r"(?:disease|syndrome|disorder|deficiency|insufficiency|failure|palsy|cardiopathy|dystrophy|anemia)s?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class ConceptTerms:
    """Lexicons of findings and regions with the names of a data set's concepts added."""

    finding: Lexicon
    region: Lexicon


def concept_terms(names: Mapping[str, str]) -> ConceptTerms | None:
    """Return the lexicons extended by `names`, by CUI; None without names."""
    if not names:
        return None
    rows: dict[str, list[tuple[str, str]]] = {"finding": [], "region": []}
    for name in names.values():
        words = split_words(name)
        regions = {mention.term for mention in read_lexicon("region").mentions(words)}
        spellings = "; ".join(sorted(spelling.lower() for spelling in synonyms(name)))
        if any(read_lexicon("finding").mentions(words)):
            continue
        if _DISEASE.search(name):
            rows["finding"].append((name.lower(), spellings))
        elif regions:
            rows["region"].append((" + ".join(sorted(regions)), spellings))
    return ConceptTerms(**{kind: Lexicon([*_base(kind), *rows[kind]]) for kind in rows})


def _base(kind: str) -> list[tuple[str, str]]:
    return [(row["term"], row["synonyms"]) for row in read_rows(kind)]
