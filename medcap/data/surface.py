"""Surface: what a lower-casing WordPiece decoder breaks, restored.

BLIP's tokenizer (bert-base-uncased) splits at every punctuation mark and decodes with blanks between the pieces:
"chest x - ray", "3. 5 cm", "( arrow )". Scored so, even a perfect model loses 15 % of its CIDEr.

Only blanks are touched: every letter, digit and mark stays, in its order. Counts in brackets say how many of the
places that a rule takes were written its way in ROCOv2's 9,903 valid captions. What the decoder has thrown away cannot
come back: capitals, accents, characters outside the vocabulary, and whether a blank followed a full stop or a bracket
at all ("the abdomen.The arrow": always read as the end of a sentence). What is then left of a perfect model's scores
is measured by benchmarks/decoding_ceiling.py.
"""

import re
from typing import NamedTuple

from medcap.data.captions import clean_caption

HYPHEN = "[-‐‑–]"  # hyphen-minus, hyphen, non-breaking hyphen, en dash
DASH = "[-‐‑–—]"  # and the em dash, which no valid caption sets between blanks


class Rule(NamedTuple):
    """One repair: what it is for, with examples as decoded, and the expression that takes the blanks out."""

    why: str
    pattern: re.Pattern[str]
    replacement: str


# In order: a later rule sees what the earlier ones wrote. Every expression wants the blank which it removes, so
# text that is already well written passes unchanged. None looks further ahead than a word or 60 characters, so the
# time grows with the length alone.
RULES = (
    Rule(
        "decimals: 3. 5 cm (1,012 of 1,013); 'on day 3. 5 patients' reads the same and, being rare, is joined too",
        re.compile(r"(?<=\d)\. (?=\d)"),
        ".",
    ),
    Rule(
        "ratios, clock times, products, ranges: 1 : 3, 12 : 30, 3 * 5, 15 ~ 20",
        re.compile(r"\b(\d+) ([:*~]) (?=\d)"),
        r"\1\2",
    ),
    Rule(
        "abbreviations of single letters: e. g., i. v. (all); never a letter before a word, 'at point b. the'",
        re.compile(r"\b([^\W\d_]\.) (?=[^\W\d_]\.)"),
        r"\1",
    ),
    Rule(
        "possessives and contractions: crohn ' s, isn ' t",
        re.compile(r"(?<=\w) (['’]) (?=[st]\b)"),
        r"\1",
    ),
    Rule(
        'straight quotes come in pairs: " halo "; at most 60 characters apart, else they are apostrophes',
        re.compile(r"""(?<!\S)(["']) ([^"'‘“]{1,60}) \1(?!\w)"""),
        r"\1\2\1",
    ),
    Rule(
        "clipped particles: o ' clock, o ' brien, d ' emblee",
        re.compile(r"(?<=\b[odl]) (['’]) (?=[^\W\d_]{2})"),
        r"\1",
    ),
    Rule(
        "plural possessives: weeks ' gestation",
        re.compile(r"(?<=s) '(?= )"),
        "'",
    ),
    Rule(
        "opening brackets and quotes lean on what follows",
        re.compile(r"(?<=[(\[{“‘]) "),
        "",
    ),
    Rule(
        "closing brackets and quotes, percent, colon and semicolon lean on what comes before",
        re.compile(r" (?=[)\]}”’′″%:;])"),
        "",
    ),
    Rule(
        "signs: (- 78 hu), of - 29, to + 150, (> 5 mm). After any other word a hyphen is a compound's: l4 - 5",
        re.compile(r"([(\[]|[=<>] |\b(?:of|to|is|and|from|than|around|value) )([-–+<>]) (?=\d)"),
        r"\1\2",
    ),
    Rule(
        "marks of a number: case # 3, ~ 5 mm (23 of 26)",
        re.compile(r"([#~]) (?=\d)"),
        r"\1",
    ),
    Rule(
        "t2 * of magnetic resonance, one word",
        re.compile(r"\bt2 \*"),
        "t2*",
    ),
    Rule(
        "suspended hyphens: iso - to hypointense, t1 - and t2-weighted (14 of 15); but end - to - end",
        re.compile(rf"(?<=\w) ({HYPHEN})(?= (?:and|or|to) (?!{HYPHEN}))"),
        r"\1",
    ),
    Rule(
        "compounds and ranges: x - ray, t2 - weighted, 3 - 5 mm, pet / ct (97 %). Left apart: an abbreviation before "
        "its meaning, ct - computed tomography (29 of 33), and a picture's title, axial view - a mass (22 of 24)",
        re.compile(
            r"(\b(\w)(\w)\w{0,2} [-–] (?=\2\w+[- ]{1,3}\3)"
            r"|\b(?:scan|view|ray|radiograph|finding|presentation) [-–] )"
            rf"|(?<=[\w%)\]°*]) ({DASH}|/) (?=[\w(\[])"
        ),
        r"\1\4",
    ),
)


def restore_surface(text: str) -> str:
    """Return decoded `text` as captions are written: "a 3. 5 cm mass ( left )" -> "a 3.5 cm mass (left)".

    For each prediction before it is shown or scored, training's metrics included. A second time changes nothing.
    """
    text = clean_caption(text)
    for rule in RULES:
        text = rule.pattern.sub(rule.replacement, text)
    return text
