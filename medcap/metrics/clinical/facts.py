"""Extraction of facts from captions: modality, side, body region, present and absent findings, numbers with units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from medcap.data.concepts import modalities_in
from medcap.data.terms import read_lexicon, split_words
from medcap.metrics.clinical.concept_terms import ConceptTerms
from medcap.metrics.clinical.context import NEGATED, PRESENT, Context
from medcap.metrics.clinical.numbers import numbers_in

KINDS = ("modality", "laterality", "region", "finding", "negation", "number")
CaptionFacts = Mapping[str, frozenset[str]]
_HYPHENS = str.maketrans("‐‑", "--")  # used by publishers, as in "X‐ray"
_LEGEND = re.compile(r"\b([LR])(\s?[:=,]\s?)(?:left|right)\b", re.IGNORECASE)  # of letters in the image
_NON = re.compile(r"\bnon(?=[a-z]{4})", re.IGNORECASE)  # a negation: "nonobstructive"


@lru_cache(maxsize=2**15)  # references are compared with several systems
def extract_facts(caption: str, concepts: ConceptTerms | None = None) -> CaptionFacts:
    """Return the facts that a caption states, by kind of `KINDS`; `concepts` are further terms of the data set.

    modality     values of `medcap.data.concepts.MODALITIES`; CT angiography is CT, PET/CT is "combined"
    laterality   "left" and "right": the side of a finding or a paired organ; "bilateral" is both. Chambers and
                 arteries of the heart, views, and positions in the image do not count
    region       values of `medcap.data.concepts.REGION_BY_CUI`, and "neck"; the skull includes brain, eyes and teeth
    finding      findings stated as present or possible
    negation     findings stated as absent or resolved
    number       numbers with a unit, converted to a base unit: "3.5 cm" is "35 mm", "2 years" is "24 months"

    Findings in the patient's history, and those that the study is to rule out, count as neither. Terms are in
    `medcap/data/lexicons`. Facts are not inferred, and a side is not linked to a finding.
    """
    text = _LEGEND.sub(r"\1\2", _NON.sub("non-", " ".join(caption.split()).translate(_HYPHENS)))
    words = split_words(text)
    context = Context(text, words)
    finding_terms = concepts.finding if concepts else read_lexicon("finding")
    region_terms = concepts.region if concepts else read_lexicon("region")
    findings = [(mention.term, context.assertion(mention)) for mention in finding_terms.mentions(words)]
    return {
        "modality": frozenset(modalities_in(words)),
        "laterality": frozenset(mention.term for mention in read_lexicon("laterality").mentions(words)),
        "region": frozenset(mention.term for mention in region_terms.mentions(words)),
        "finding": frozenset(term for term, assertion in findings if assertion in (PRESENT, "possible")),
        "negation": frozenset(term for term, assertion in findings if assertion == NEGATED),
        "number": frozenset(numbers_in(text)),
    }
