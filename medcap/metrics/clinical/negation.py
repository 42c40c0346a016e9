"""Negation of findings, after NegEx (Chapman et al., 2001, J Biomed Inform 34:301).

Unlike in NegEx, the scope of a cue ends at the end of the sentence or at a terminating word, because captions contain
long lists; and resolved findings ("resolution of") count as absent.
"""

from __future__ import annotations

import re

# cues before and after the finding, phrases with a cue that do not negate, and words that end the scope of a cue
_PSEUDO_CUES = (
    r"no (?:significant |definite |obvious |further |interval |appreciable )?(?:change|increase|decrease|growth|"
    r"improvement|progress\w*)\w*|not (?:only|necessarily|just|certain\w*)|without (?:change|difficulty)|"
    r"no longer than|"
    r"(?:not|never|cannot|can not|could not|couldn't|can't)(?: \w+){0,2} (?:be )?(?:ruled out|rule out|exclude[d]?)|"
    r"without (?:iv |intravenous |oral |enteric |any )?contrast\w*(?: \w+ing)?|no contrast|with(?: and|/|-and-|"
    r" or )without"
)
_CUES_BEFORE = (
    r"no|not|without|w/o|never|neither|nor|absen(?:ce|t)(?: of)?|lack(?:s|ing)?(?: of)?|free (?:of|from)|devoid of|"
    r"negative for|den(?:y|ies|ied)|rul(?:e|es|ed|ing) out|exclud(?:e|es|ed|ing)|resolution(?: of)?|"
    r"disappearance(?: of)?|fails? to (?:show|reveal)|non-?\Z"
)
_CUES_AFTER = (
    r"(?:is|are|was|were|has been|have been|had been|could be|can be)? ?(?:not|never|no longer) "
    r"(?:be |been |clearly |definitely )*(?:seen|identified|visible|visuali[sz]ed|present|detected|found|noted|"
    r"observed|evident|demonstrated|appreciated|shown)|(?:is|are|was|were) (?:absent|ruled out|excluded|negative)|"
    r"(?:has|have|had) (?:completely |fully |almost |nearly )?(?:been )?(?:resolved|disappeared|vanished|cleared)|"
    r"(?:completely )?(?:resolved|disappeared)\b|: ?(?:none|absent|negative)"
)
_ENDS = (
    r"but|however|although|though|yet|except|apart|aside|other than|with(?!in|out)|which|who|where|while|whereas|"
    r"show\w*|demonstrat\w+|reveal\w+|(?<!findings )(?<!features )(?<!signs )(?<!to )suggest\w*|"
    r"indicat\w+|consistent|compatible|due|secondary|because|since|after|"
    r"before|there|this|these|arrows?|and (?:an?|the|with|complete|normal)|, an?|then|causing|seen in|within|"
    r"inside|despite|note|now"
)
_PSEUDO = re.compile(rf"\b(?:{_PSEUDO_CUES})", re.IGNORECASE)
_BEFORE = re.compile(rf"\b(?:{_CUES_BEFORE})(?!\w)", re.IGNORECASE)
_AFTER = re.compile(rf"[^,:]{{0,40}}?(?:{_CUES_AFTER})", re.IGNORECASE)
_END = re.compile(rf"(?<!\w)(?:{_ENDS})\b", re.IGNORECASE)
# the finding is not negated in "no enhancement of the mass", but in "no sign of the mass"
_KNOWN = re.compile(
    r"(?<!evidence )(?<!signs )(?<!sign )(?<!absence )(?<!resolution )(?<!disappearance )"
    r"\b(?:of|in|from) (?:the|this|these)(?: (?!or\b|and\b)[\w-]+){0,2} \Z",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|(?<=\w)\.(?=[A-Z])|[;?!]")


def sentences(text: str) -> list[str]:
    """Split into sentences; phrases with a cue that do not negate ("no change", "without contrast") become "#"."""
    return [_PSEUDO.sub("#", sentence) for sentence in _SENTENCE_END.split(text)]


def is_negated(sentence: str, start: int, end: int) -> bool:
    """Return whether a cue negates the text from `start` to `end` in a sentence of `sentences`."""
    before = list(_BEFORE.finditer(sentence, 0, start))
    known = before and _KNOWN.search(sentence, before[-1].start(), start)
    if before and not known and not _END.search(sentence, before[-1].end(), start):
        return True
    after = _AFTER.match(sentence, end)
    return after is not None and not _END.search(after.group())
