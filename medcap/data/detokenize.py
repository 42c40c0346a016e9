"""Surface: what a lower-casing WordPiece decoder breaks, restored.

BLIP's tokenizer (bert-base-uncased) splits at every punctuation mark, lower-cases, and decodes with blanks between the
pieces: "chest x - ray", "3. 5 cm", "( arrow )", "t2 mri". Scored so, even a perfect model loses 15 % of its CIDEr.

Only blanks are touched, and the case of known terms (`truecasing`): every letter, digit and mark stays, in its
order. Counts in brackets say how many of the places that a rule takes were written its way in ROCOv2's 9,903 valid
captions. What the decoder has thrown away cannot come back: accents, characters outside the vocabulary, and whether a
blank followed a full stop or a bracket at all ("the abdomen.The arrow": always read as the end of a sentence). What is
then left of a perfect model's scores is measured by benchmarks/decoding_ceiling.py.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from medcap.data.captions import clean_caption
from medcap.data.truecasing import is_term, write_terms

HYPHEN = "[-‐‑–]"  # hyphen-minus, hyphen, non-breaking hyphen, en dash
DASH = "[-‐‑–—]"  # and the em dash, which no valid caption sets between blanks
# nouns that end, words that begin, the half of a picture's title that a hyphen with blanks parts from the other
TITLES = "finding|image|picture|plane|presentation|radiograph|ray|scan|section|view"
NOT_TITLES = "based|directed|fusion|guided"  # image-guided
AFTER_TITLES = r"note|shows|showing|image \d|(?:axial|coronal|sagittal|transvers(?:e|al)) (?:image|section|view)"
ABBREVIATION_PAIRS = (
    "ap [-–] antero|lt [-–] left|pa [-–] postero|rt [-–] right"  # abbreviations that no rule of initials finds
)


class Rule(NamedTuple):
    """One repair: what it is for, with examples as decoded, and the expression that takes the blanks out."""

    why: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]


def rule(why: str, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> Rule:
    """A Rule that reads capitals as small letters, so that text which has its terms back passes unchanged."""
    return Rule(why, re.compile(pattern, re.IGNORECASE), replacement)


def join_compound(hyphen: re.Match[str]) -> str:
    """Return the hyphen without its blanks, or with them where it parts an abbreviation from its meaning."""
    mark, text = hyphen[1], hyphen.string
    if mark not in ("-", "–"):
        return mark or hyphen[0]  # none: what the expression itself leaves apart
    before = re.search(r"(?<!\w)\w{2,8}$", text[max(0, hyphen.start() - 9) : hyphen.start()])
    apart = before is not None and spells(before[0].lower(), text[hyphen.end() : hyphen.end() + 80].lower())
    return hyphen[0] if apart else mark


def spells(abbreviation: str, meaning: str) -> bool:
    """Whether `meaning` begins with the initials (ct - computed tomography) or has the letters of a known term."""
    words = re.split(r"[\s\-–]+", re.split(r"[.:;()]", meaning)[0])[:4]
    if is_term(words[0]) or abbreviation in ("post", "pre"):
        return False
    if len(abbreviation) <= 4 and abbreviation[:2] == "".join(word[:1] for word in words[:2]):
        return True
    letters = iter("".join(words))
    known = len(abbreviation) > 2 and is_term(abbreviation) and abbreviation[0] == words[0][:1]
    return known and all(letter in letters for letter in abbreviation)  # in this order: `in` reads on


# In order: a later rule sees what the earlier ones wrote. Every expression wants the blank which it removes, so
# text that is already well written passes unchanged. None looks further than a word, 80 characters or a list
# in brackets, so the time grows with the length alone.
RULES = (
    rule(
        "decimals: 3. 5 cm (1,012 of 1,013); 'on day 3. 5 patients' reads the same and, being rare, is joined too",
        r"(?<=\d)\. (?=\d)",
        ".",
    ),
    rule(
        "ratios, clock times, products, ranges: 1 : 3, 12 : 30, 3 * 5, 15 ~ 20; a year's colon is none",
        r"\b(\d{1,3}) ([:*~]) (?=\d)",
        r"\1\2",
    ),
    rule(
        "abbreviations of single letters: e. g., i. v. (all); never a letter before a word, 'at point b. the'",
        r"\b([^\W\d_]\.) (?=[^\W\d_]\.)",
        r"\1",
    ),
    rule(
        "possessives and contractions: crohn ' s, isn ' t",
        r"(?<=\w) (['’]) (?=[st]\b)",
        r"\1",
    ),
    rule(
        'straight quotes come in pairs: " halo "; at most 60 characters apart, else they are apostrophes',
        r"""(?<!\S)(["']) ([^"'‘“]{1,60}) \1(?!\w)""",
        r"\1\2\1",
    ),
    rule(
        "clipped particles: o ' clock, o ' brien, d ' emblee",
        r"(?<=\b[odl]) (['’]) (?=[^\W\d_]{2})",
        r"\1",
    ),
    rule(
        "plural possessives: weeks ' gestation",
        r"(?<=s) '(?= )",
        "'",
    ),
    rule(
        "opening brackets and quotes lean on what follows",
        r"(?<=[(\[{“‘]) ",
        "",
    ),
    rule(
        "closing brackets and quotes, percent, colon and semicolon lean on what comes before",
        r" (?=[)\]}”’′″%:;])",
        "",
    ),
    rule(
        "plus or minus: + / - 3",
        r"\+ / (?=[-–])",
        "+/",
    ),
    rule(
        "signs: (- 78 hu), of - 29, to + 150, (> 5 mm), / + 12. After other words a hyphen is a compound's: l4 - 5",
        r"([(\[]|[=<>/] |\b(?:of|to|is|and|from|than|around|values?) )([-–+<>]) (?=\d)",
        r"\1\2",
    ),
    rule(
        "marks of a number: case # 3, ~ 5 mm (23 of 26)",
        r"([#~]) (?=\d)",
        r"\1",
    ),
    rule(
        "t2 * of magnetic resonance, one word",
        r"\b(t2) \*",
        r"\1*",
    ),
    rule(
        "suspended hyphens: iso - to hypointense, t1 - and t2-weighted (14 of 15); but end - to - end",
        rf"(?<=\w) ({HYPHEN})(?= (?:and|or|to) (?!{HYPHEN}))",
        r"\1",
    ),
    rule(
        "a legend's double asterisk: line * * (3 of 3)",
        r"\* (?=\*)",
        "*",
    ),
    rule(
        "citations: [4, 5, 6] (12 of 12)",
        r"(?<=\[)\d{1,2}(?:, \d{1,2})+(?=\])",
        lambda numbers: numbers[0].replace(" ", ""),
    ),
    rule(
        "names of sequences: t2 _ tse (3 of 3)",
        r"(?<=\w) _ (?=\w)",
        "_",
    ),
    rule(
        "compounds and ranges: x - ray, t2 - weighted, 3 - 5 mm, pet / ct (98.7 %). Left apart (76 of 98): an "
        "abbreviation before its meaning, ct - computed tomography, flair - fluid-attenuated; a picture's title, "
        "axial view - a mass, pelvis - coronal image; journals' 'resolution / colour version'",
        rf"\b(?:{ABBREVIATION_PAIRS}|resolution / (?=colou?r))"
        rf"|\b(?:{TITLES})s? [-–] (?!(?:{NOT_TITLES})\b)"
        rf"| [-–] (?=(?:{AFTER_TITLES})\b)"
        rf"|(?<=[\w%)\]°*]) ({DASH}|/) (?=[\w(\[]|[-+]\d)",
        join_compound,
    ),
)


def detokenize(text: str) -> str:
    """Return decoded `text` as captions are written: "a 3. 5 cm mass ( left )" -> "a 3.5 cm mass (left)".

    For each prediction before it is shown or scored, training's metrics included. A second time changes nothing.
    """
    text = clean_caption(text)
    for _, pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return write_terms(text)
