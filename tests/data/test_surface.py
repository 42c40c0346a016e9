"""What the WordPiece decoder breaks is restored, and nothing but blanks is ever touched (trap 10 of BLIP)."""

import random
import re

import pytest
from transformers import BertTokenizerFast

from medcap.data import surface
from medcap.data.surface import RULES, restore_surface

CASES = {
    # degenerate
    "empty": ("", ""),
    "blanks only": (" \u00a0\n ", ""),
    "one word": ("pneumothorax", "pneumothorax"),
    "one mark": ("-", "-"),
    "marks only": ("( - ) / '", "(-) / '"),
    "nothing broken": ("no focal lesion, no effusion.", "no focal lesion, no effusion."),
    "blanks of other kinds": ("a\u202fsmall\n\ncyst ", "a small cyst"),
    # numbers
    "decimal": ("a nodule of 3. 5 cm.", "a nodule of 3.5 cm."),
    "decimals and a product": ("10. 5 x 2. 25 x 0. 8 mm", "10.5 x 2.25 x 0.8 mm"),
    "decimal glued to its unit": ("a 1. 5cm stone", "a 1.5cm stone"),
    "sentence ends, word follows": ("segment 2. the left lobe", "segment 2. the left lobe"),
    "sentence ends, bracket follows": ("grade 2. ( b ) later", "grade 2. (b) later"),
    "sentence ends, number follows: known loss": ("on day 3. 5 days later", "on day 3.5 days later"),
    "figure number keeps its blank": ("see fig. 2", "see fig. 2"),
    "numbers in a row stay apart": ("b values of 50, 400, 800", "b values of 50, 400, 800"),
    "ratio": ("diluted 1 : 3 in saline", "diluted 1:3 in saline"),
    "clock time": ("cyst at 12 : 30", "cyst at 12:30"),
    "level before a colon is no ratio": ("l1 : 25 degrees", "l1: 25 degrees"),
    "product by asterisk": ("a 3. 5 * 2 * 1 cm cyst", "a 3.5*2*1 cm cyst"),
    "range by tilde": ("15 ~ 20 mm", "15~20 mm"),
    "about": ("a ~ 4 mm polyp", "a ~4 mm polyp"),
    "counting mark": ("tooth # 23", "tooth #23"),
    "negative in brackets": ("fat ( - 90 hu )", "fat (-90 hu)"),
    "negative after a preposition": ("from - 80 to - 20 hu, mean of - 55", "from -80 to -20 hu, mean of -55"),
    "positive": ("shifted to + 12 degrees", "shifted to +12 degrees"),
    "threshold in brackets": ("enlarged ( > 5. 5 mm )", "enlarged (>5.5 mm)"),
    "number after a word is a level": ("disc at l4 - 5", "disc at l4-5"),
    "percent": ("stenosis of 70 %, then 85. 5 %", "stenosis of 70%, then 85.5%"),
    "percent range": ("20 % - 30 % of the lung", "20%-30% of the lung"),
    # hyphens and slashes
    "hyphen": ("chest x - ray", "chest x-ray"),
    "hyphens in a chain": ("a 60 - year - old man, right - sided", "a 60-year-old man, right-sided"),
    "weighting": ("t2 - weighted", "t2-weighted"),
    "weighting with an asterisk": ("t2 * - weighted", "t2*-weighted"),
    "range": ("2 - 3 cm", "2-3 cm"),
    "en dash": ("the hip – knee axis", "the hip–knee axis"),
    "em dash before a meaning": ("la — left atrium", "la—left atrium"),
    "suspended hyphen": (
        "iso - to hypointense, pre - and post - contrast",
        "iso- to hypointense, pre- and post-contrast",
    ),
    "hyphens on both sides of to": ("end - to - end", "end-to-end"),
    "abbreviation and meaning": ("ct - computed tomography", "ct - computed tomography"),
    "abbreviation and hyphenated meaning": ("hrct - high - resolution ct", "hrct - high-resolution ct"),
    "abbreviation and another": ("ct - colonography", "ct-colonography"),
    "title of a picture": ("axial view - a large mass", "axial view - a large mass"),
    "hyphen after a bracket": ("emission ( pet ) - ct", "emission (pet)-ct"),
    "hyphen without neighbour": ("- left lung -", "- left lung -"),
    "slash": ("pet / ct, 12 mg / dl", "pet/ct, 12 mg/dl"),
    # brackets, quotes, apostrophes
    "brackets": ("mass ( white arrow ), edema [ b ]", "mass (white arrow), edema [b]"),
    "panel letters": ("( a ) before, ( b - d ) after", "(a) before, (b-d) after"),
    "nested brackets": ("( thin ( 2 mm ) wall ).", "(thin (2 mm) wall)."),
    "plural in brackets": ("node ( s ).", "node (s)."),
    "colon and semicolon": ("lv : left ventricle ; ra : right atrium", "lv: left ventricle; ra: right atrium"),
    "possessive": ("crohn ' s disease", "crohn's disease"),
    "curly possessive": ("the patient ’ s spine", "the patient’s spine"),
    "possessive that came whole": ("the patient's spine", "the patient's spine"),
    "plural possessive": ("at 12 weeks ' gestation", "at 12 weeks' gestation"),
    "curly plural possessive": ("six months ’ rest", "six months’ rest"),
    "contraction": ("it doesn ' t enhance", "it doesn't enhance"),
    "o'clock": ("at the 9 o ' clock position", "at the 9 o'clock position"),
    "straight quotes": ('shows the " ring " sign', 'shows the "ring" sign'),
    "single quotes": ("shows ' spoke wheel ' sign", "shows 'spoke wheel' sign"),
    "single quotes beside a possessive": ("crohn ' s ' comb sign '.", "crohn's 'comb sign'."),
    "curly quotes": ("the “ comb ” and ‘ halo ’ signs", "the “comb” and ‘halo’ signs"),
    "abbreviation of letters": ("e. g., by i. v. contrast", "e.g., by i.v. contrast"),
    "letter before a word": ("up to point b. the line", "up to point b. the line"),
    # letters of the vocabulary's other scripts, and marks that the decoder leaves alone
    "degrees": ("rotated by 30° - 45°", "rotated by 30°-45°"),
    "times": ("3. 5 × 2 mm", "3.5 × 2 mm"),
    "greek": ("a β - blocker", "a β-blocker"),
}
WORDS = (
    "a b o d l s t ct c mri t2 x ray view scan computed tomography and or to of is e i.e. the 3 5 10 3. 10. a. 5cm l4"
)
MARKS = ", . : ; % ( ) [ ] { } \" ' ’ ‘ “ ” - – — ‐ / * # ~ + < > = ° × é µ [UNK] \u202f"
PIECES = [*WORDS.split(" "), *MARKS.split(" ")]


def random_texts(n=2000, longest=14, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(PIECES, k=rng.randint(0, longest))) for _ in range(n)]


@pytest.mark.parametrize(("decoded", "restored"), CASES.values(), ids=CASES)
def test_restore_surface(decoded, restored):
    assert restore_surface(decoded) == restored


@pytest.mark.parametrize("restored", [restored for _, restored in CASES.values()], ids=CASES)
def test_restored_text_passes_unchanged(restored):
    assert restore_surface(restored) == restored


@pytest.mark.parametrize("rule", RULES, ids=[rule.why for rule in RULES])
def test_every_rule_is_needed(monkeypatch, rule):
    monkeypatch.setattr(surface, "RULES", [other for other in RULES if other is not rule])
    assert any(restore_surface(decoded) != restored for decoded, restored in CASES.values())


def test_nothing_but_blanks_is_touched():
    for text in random_texts():
        assert "".join(restore_surface(text).split()) == "".join(text.split())


def test_no_number_is_joined_to_the_next():
    for text in random_texts(seed=1):
        assert re.findall(r"\d+", restore_surface(text)) == re.findall(r"\d+", text)


def test_twice_is_once():
    for text in random_texts(seed=2):
        once = restore_surface(text)
        assert restore_surface(once) == once


def test_what_the_tokenizer_breaks_is_restored():
    caption = "Chest X-ray: a 3.5 x 2 cm mass (arrow), right-sided; the patient's 70% stenosis."
    pieces = re.findall(r"[a-z]+|\d+|\S", caption.lower())
    vocab = {
        piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)])
    }
    tokenizer = BertTokenizerFast(vocab=vocab, do_lower_case=True)
    decoded = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert decoded.startswith("chest x - ray : a 3. 5 x 2 cm mass ( arrow ), right - sided ;")
    assert restore_surface(decoded) == caption.lower()
