"""Detokenize the output of a lower-casing WordPiece tokenizer.

BLIP's tokenizer (bert-base-uncased) splits at every punctuation mark, lower-cases, and decodes with spaces between the
pieces: "chest x - ray", "3. 5 cm", "( arrow )", "t2 mri". Without detokenization, a perfect model loses 15 % of its
CIDEr.

Only spaces are removed, and the case of known terms is restored (`truecasing`). Counts in brackets are the matches of
a rule in ROCOv2's 9,903 valid captions, for rare kinds also in 9,972 of ImageCLEF 2024, that were written as the rule
writes them. Accents, characters outside the
vocabulary, and most missing spaces after a full stop ("the abdomen.The arrow") cannot be restored; their effect on
scores is measured by benchmarks/decoding_ceiling.py.
"""

import re
from collections.abc import Callable

from medcap.data.captions import clean_caption
from medcap.data.truecasing import is_term, write_terms

HYPHEN = "[-‐‑–]"  # hyphen-minus, hyphen, non-breaking hyphen, en dash
DASH = "[-‐‑–—]"  # with the em dash, which no valid caption writes between spaces
# last words and first words of the two parts of an image title that are separated by " - "
BEFORE_TITLE_DASH = (
    "anteroposterior|arrow|dead|electrode|finding|foramen|image|noted|panel|patient|pelvis|picture|plane|presentation"
    "|radiograph|ray|scan|section|sequence|view"
)
NOT_AFTER_TITLE_DASH = "based|directed|fusion|guided|head|like|marked|specific"  # image-guided
AFTER_TITLE_DASH = (
    r"(?:coronal|distance|note|rotterdam|shows|showing"
    r"|(?:axial|sagittal|transvers(?:e|al)) (?:image|section|view))\b|image \d"
)
# abbreviations whose letters are not the initials of their meaning
ABBREVIATION_PAIRS = "ap [-–] antero|lt? [-–] left|pa [-–] postero|rt? [-–] right"


def join_compound(hyphen: re.Match[str]) -> str:
    """Return the hyphen without its spaces, or unchanged between an abbreviation and its meaning."""
    mark, text = hyphen[1], hyphen.string
    if mark not in ("-", "–"):
        return mark or hyphen[0]  # None: a match that the pattern leaves separate
    before = re.search(r"(?<!\w)\w{2,8}$", text[max(0, hyphen.start() - 9) : hyphen.start()])
    if before and abbreviates(before[0].lower(), text[hyphen.end() : hyphen.end() + 80].lower()):
        return hyphen[0]
    return mark


def abbreviates(abbreviation: str, meaning: str) -> bool:
    """Return whether `meaning` has the initials (ct - computed tomography) or, for a known term, the letters."""
    words = re.split(r"[\s\-–]+", re.split(r"[.:;()]", meaning)[0])[:4]
    if is_term(words[0]) or abbreviation in ("post", "pre"):
        return False
    if len(abbreviation) <= 4 and abbreviation[:2] == "".join(word[:1] for word in words[:2]):
        return True
    letters = iter("".join(words))
    known = len(abbreviation) > 2 and is_term(abbreviation) and abbreviation[0] == words[0][:1]
    return known and all(letter in letters for letter in abbreviation)  # in order: `in` consumes the iterator


# Patterns and replacements, applied in order and ignoring case, so that restored capitals match too. Every pattern
# contains the space that it removes, so detokenized text is not changed. Context is limited to a word, 80 characters
# or a list in brackets, so run time is linear in the length.
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # decimals: 3. 5 cm (1,012 of 1,013); 'on day 3. 5 patients' is joined too, which is rare. Not joined: the number
    # of a figure, 'fig. 1. 3 weeks', and broken ones, 'nodes. 6. 8. ga' (4 of 4)
    (
        r"(?<!\b[a-z]\. \d)(?<!\bfig\. \d)(?<!\bfigure \d)(?<!\bcase \d)(?<!\btable \d)"
        r"(?<=\d)\. (?=\d(?!\. (?:ga|tc)\b))",
        ".",
    ),
    # thousands: 1, 300 and 214, 000 (14 of 14); but not 50, 400, 800 or 50, 400 and 800
    (r"(?<![\d.,])(?<!\b\d, )(?<!\b\d\d, )(?<!\b\d{3}, )([1-9]\d{0,2}), (?=\d{3}\b(?!,? ?(?:and |or )?\d))", r"\1,"),
    # decimal commas: suvmax = 26, 08, ratio 0, 6, l 3, 21; citations 'kim. 14, 15' at the end (6 of 6). Other pairs
    # are lists and dates: (1, 2), july 31, 2009 (78 of 81)
    (
        r"(?<!\b0\d)(?<=\d), (?=0\d\b)|(?<=\bratio 0), (?=\d)|(?<=\b[hlw] \d), (?=\d\d\b)"
        r"|(?<=[a-z]\. \d\d), (?=\d\d$)",
        ",",
    ),
    # names of chelators: 1, 4, 7, 10 - tetraaza (2 of 2)
    (r"\b1, 4, 7, 10(?= - tetra)", "1,4,7,10"),
    # ratios, clock times, products, ranges: 1 : 3, 12 : 30, 3 * 5, 15 ~ 20; but not after a year
    (r"\b(\d{1,3}) ([:*~]) (?=\d+\b(?! /))", r"\1\2"),
    # abbreviations of single letters: e. g., i. v. (all); but not a letter before a word, 'at point b. the'
    (r"\b([^\W\d_]\.) (?=[^\W\d_]\.)", r"\1"),
    # possessives and contractions: crohn ' s, isn ' t
    (r"(?<=\w) (['’]) (?=[st]\b)", r"\1"),
    # pairs of straight quotes: " halo ", at most 60 characters; longer ones are apostrophes
    (r"""(?<!\S)(["']) ([^"'‘“]{1,60}) \1(?!\w)""", r"\1\2\1"),
    # clipped particles: o ' clock, o ' brien, d ' emblee
    (r"(?<=\b[odl]) (['’]) (?=[^\W\d_]{2})", r"\1"),
    # plural possessives: weeks ' gestation
    (r"(?<=s) '(?= )", "'"),
    # no space after opening brackets and quotes
    (r"(?<=[(\[{“‘]) ", ""),
    # no space before closing brackets and quotes, percent, colon and semicolon
    (r" (?=[)\]}”’′″%:;])", ""),
    # plus or minus: + / - 3
    (r"\+ / (?=[-–])", "+/"),
    # signs: (- 78 hu), of - 29, to + 150, (> 5 mm), / + 12. Other hyphens are compounds: l4 - 5
    (r"([(\[]|[=<>/] |\b(?:of|to|is|and|from|than|around|values?) )([-–+<>]) (?=\d)", r"\1\2"),
    # signs of a number: case # 3, ~ 5 mm (23 of 26)
    (r"([#~]) (?=\d)", r"\1"),
    # t2 * of MRI
    (r"\b(t2) \*", r"\1*"),
    # suspended hyphens: iso - to hypointense, t1 - and t2-weighted (14 of 15); but end - to - end
    (rf"(?<=\w) ({HYPHEN})(?= (?:and|or|to) (?!{HYPHEN}))", r"\1"),
    # double asterisk of a legend: line * * (3 of 3)
    (r"\* (?=\*)", "*"),
    # citations: [4, 5, 6] (12 of 12)
    (r"(?<=\[)\d{1,2}(?:, \d{1,2})+(?=\])", lambda numbers: numbers[0].replace(" ", "")),
    # names of sequences: t2 _ tse (3 of 3)
    (r"(?<=\w) _ (?=\w)", "_"),
    # list of abbreviations, a paragraph of its own: of the lung.Abbreviations: CT (20 of 26)
    (r"(?<=\.) (?=abbreviations?:)", ""),
    # compounds and ranges: x - ray, t2 - weighted, 3 - 5 mm, pet / ct (98.7 %). Not joined (76 of 98): an
    # abbreviation before its meaning, ct - computed tomography, flair - fluid-attenuated; the title of an image,
    # axial view - a mass, pelvis - coronal image; 'resolution / colour version' of journals
    (
        rf"\b(?:{ABBREVIATION_PAIRS}|resolution / (?=colou?r))"
        rf"|\b(?:{BEFORE_TITLE_DASH})s? [-–] (?!(?:{NOT_AFTER_TITLE_DASH})\b)"
        rf"|(?<!\bmid) [-–] (?={AFTER_TITLE_DASH})"
        rf"|(?<=[\w%)\]°*]) ({DASH}|/) (?=[\w(\[]|[-+]\d)",
        join_compound,
    ),
)
RULES = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _RULES]


# a legend at the end: an abbreviation and : , or -, without a full stop after it
LEGEND = re.compile(r"([^\W\d_][\w/*-]{0,8})(?::|,| -) (?!.*\.(?:\s?[^\W\d]|$))")


def join_legend(text: str) -> str:
    """Remove the space before a legend that is a paragraph of its own: "of the brain.MRI: magnetic resonance".

    It follows two or more sentences, has no full stop at its end, and its abbreviation is used before. The space is
    missing in 57 of 85 such captions; before other legends it is missing in fewer than half, and stays.
    """
    before, stop, after = text.rpartition(". ")
    legend = LEGEND.match(after)
    if not stop or ". " not in before or legend is None:
        return text
    used = re.search(rf"(?<!\w){re.escape(legend[1])}(?!\w)", before, re.IGNORECASE)
    return f"{before}.{after}" if used else text


def detokenize(text: str) -> str:
    """Return decoded `text` as captions are written: "a 3. 5 cm mass ( left )" -> "a 3.5 cm mass (left)".

    Applied to every prediction before it is shown or scored, also in training. Idempotent.
    """
    text = clean_caption(text)
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return write_terms(join_legend(text))
