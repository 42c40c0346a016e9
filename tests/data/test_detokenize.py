"""What the WordPiece decoder breaks is restored; nothing but blanks and known terms' case is touched (trap 10)."""

import random
import re
import time

import pytest
from transformers import BertTokenizerFast

from medcap.data import detokenize as detokenization
from medcap.data.detokenize import RULES, detokenize
from medcap.data.truecasing import MIXED, UPPER

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
    "year before a colon is no ratio": ("in may 2016 : 64 slices", "in may 2016: 64 slices"),
    "thousands stay as the decoder leaves them": ("19, 150 cells", "19, 150 cells"),
    "citations": ("as reported [ 4, 5, 16 ]", "as reported [4,5,16]"),
    "decimal comma or list in round brackets": ("( 4, 5 )", "(4, 5)"),
    "date": ("on 12 / 05 / 2020", "on 12/05/2020"),
    "spread": ("5. 5 ± 0. 3 cm, 4 + / - 1", "5.5 ± 0.3 cm, 4 +/- 1"),
    "clock time": ("cyst at 12 : 30", "cyst at 12:30"),
    "level before a colon is no ratio": ("l1 : 25 degrees", "L1: 25 degrees"),
    "product by asterisk": ("a 3. 5 * 2 * 1 cm cyst", "a 3.5*2*1 cm cyst"),
    "range by tilde": ("15 ~ 20 mm", "15~20 mm"),
    "about": ("a ~ 4 mm polyp", "a ~4 mm polyp"),
    "counting mark": ("tooth # 23", "tooth #23"),
    "negative in brackets": ("fat ( - 90 hu )", "fat (-90 HU)"),
    "negative after a preposition": ("from - 80 to - 20 hu, mean of - 55", "from -80 to -20 HU, mean of -55"),
    "positive": ("shifted to + 12 degrees", "shifted to +12 degrees"),
    "signs on both sides of a slash": ("hu − 20 / + 12", "HU − 20/+12"),
    "threshold after values": ("values < 45 ms", "values <45 ms"),
    "threshold in brackets": ("enlarged ( > 5. 5 mm )", "enlarged (>5.5 mm)"),
    "number after a word is a level": ("disc at l4 - 5", "disc at L4-5"),
    "percent": ("stenosis of 70 %, then 85. 5 %", "stenosis of 70%, then 85.5%"),
    "percent range": ("20 % - 30 % of the lung", "20%-30% of the lung"),
    # hyphens and slashes
    "hyphen": ("chest x - ray", "chest X-ray"),
    "hyphens in a chain": ("a 60 - year - old man, right - sided", "a 60-year-old man, right-sided"),
    "weighting": ("t2 - weighted", "T2-weighted"),
    "weighting with an asterisk": ("t2 * - weighted", "T2*-weighted"),
    "range": ("2 - 3 cm", "2-3 cm"),
    "en dash": ("the hip – knee axis", "the hip–knee axis"),
    "em dash before a meaning": ("la — left atrium", "LA—left atrium"),
    "suspended hyphen": (
        "iso - to hypointense, pre - and post - contrast",
        "iso- to hypointense, pre- and post-contrast",
    ),
    "hyphens on both sides of to": ("end - to - end", "end-to-end"),
    "abbreviation and meaning": ("ct - computed tomography", "CT - computed tomography"),
    "abbreviation and hyphenated meaning": ("hrct - high - resolution ct", "HRCT - high-resolution CT"),
    "abbreviation and another": ("ct - colonography", "CT-colonography"),
    "abbreviation of letters within words": (
        "flair - fluid - attenuated inversion recovery, kub - kidney, ureter, bladder",
        "FLAIR - fluid-attenuated inversion recovery, KUB - kidney, ureter, bladder",
    ),
    "abbreviation of a side": ("rt - right, lt - left", "RT - right, LT - left"),
    "abbreviation before another": ("psma - pet scan", "PSMA-PET scan"),
    "prefix is no abbreviation": ("post - procedure of", "post-procedure of"),
    "title before a picture": ("ct of the pelvis - coronal view", "CT of the pelvis - coronal view"),
    "title before its number": ("mri - image 2", "MRI - image 2"),
    "picture in a compound": ("image - guided", "image-guided"),
    "formula of journals": ("higher resolution / colour version", "higher resolution / colour version"),
    "names of sequences": ("t2 _ tse", "t2_tse"),
    "double asterisk": ("line * *, arrow", "line **, arrow"),
    "title of a picture": ("axial view - a large mass", "axial view - a large mass"),
    "hyphen after a bracket": ("emission ( pet ) - ct", "emission (PET)-CT"),
    "hyphen without neighbour": ("- left lung -", "- left lung -"),
    "slash": ("pet / ct, 12 mg / dl", "PET/CT, 12 mg/dl"),
    # brackets, quotes, apostrophes
    "brackets": ("mass ( white arrow ), edema [ b ]", "mass (white arrow), edema [b]"),
    "panel letters": ("( a ) before, ( b - d ) after", "(a) before, (b-d) after"),
    "nested brackets": ("( thin ( 2 mm ) wall ).", "(thin (2 mm) wall)."),
    "plural in brackets": ("node ( s ).", "node (s)."),
    "colon and semicolon": ("lv : left ventricle ; ra : right atrium", "LV: left ventricle; RA: right atrium"),
    "possessive": ("crohn ' s disease", "Crohn's disease"),
    "curly possessive": ("the patient ’ s spine", "the patient’s spine"),
    "possessive that came whole": ("the patient's spine", "the patient's spine"),
    "plural possessive": ("at 12 weeks ' gestation", "at 12 weeks' gestation"),
    "curly plural possessive": ("six months ’ rest", "six months’ rest"),
    "contraction": ("it doesn ' t enhance", "it doesn't enhance"),
    "o'clock": ("at the 9 o ' clock position", "at the 9 o'clock position"),
    "straight quotes": ('shows the " ring " sign', 'shows the "ring" sign'),
    "single quotes": ("shows ' spoke wheel ' sign", "shows 'spoke wheel' sign"),
    "single quotes beside a possessive": ("crohn ' s ' comb sign '.", "Crohn's 'comb sign'."),
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
    assert detokenize(decoded) == restored


@pytest.mark.parametrize("restored", [restored for _, restored in CASES.values()], ids=CASES)
def test_restored_text_passes_unchanged(restored):
    assert detokenize(restored) == restored


@pytest.mark.parametrize("rule", RULES, ids=[rule.why for rule in RULES])
def test_every_rule_is_needed(monkeypatch, rule):
    monkeypatch.setattr(detokenization, "RULES", [other for other in RULES if other is not rule])
    assert any(detokenize(decoded) != restored for decoded, restored in CASES.values())


def test_nothing_but_blanks_and_capitals_is_touched():
    for text in random_texts():
        assert "".join(detokenize(text).split()).lower() == "".join(text.split()).lower()


def random_numbers(rng):
    """Numbers as captions have them, between words, as the decoder writes them: blanks around each mark."""
    a, b, c = (rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 2030))) for _ in range(3))
    forms = (
        "{a}. {b}", "{a} - {b}", "{a}. {b} - {c} mm", "{a}, {b}", "{a}, 000", "{a} : {b}", "{a} / {b} / {c}", "{a} %",
        "l{a} - l{b}", "l{a} - {b}", "t{a}", "{a} x {b} x {c} cm", "{a} × {b}", "{a} * {b}", "+ / - {a}", "± {a}",
        "- {a}", "( - {a} )", "[ {a}, {b}, {c} ]", "# {a}", "~ {a} ~ {b}", "< {a}", "{a}° - {b}°", "{a} ' {b} \"",
        "{a} - year - old",
    )  # fmt: skip
    return " ".join(f"{rng.choice(WORDS.split())} {rng.choice(forms).format(a=a, b=b, c=c)}" for _ in range(3))


def test_no_number_is_changed():
    rng = random.Random(1)
    for text in [*random_texts(seed=1), *(random_numbers(rng) for _ in range(3000))]:
        restored = detokenize(text)
        assert re.findall(r"\d+", restored) == re.findall(r"\d+", text)
        assert detokenize(restored) == restored


@pytest.mark.parametrize(
    "piece",
    ["( ", "a - ", "ct - computed ", "' ", '" ', "1, ", "[ 1, ", "a. ", "1. ", "a", "1", "-", "- ", "x - ray - ", "* ",
     "view - ", "aa - a", " ", "é", "[UNK] "],
)  # fmt: skip
def test_time_grows_with_the_length_alone(piece):
    garbage = piece * (50_000 // len(piece))
    began = time.process_time()
    detokenize(garbage)
    assert time.process_time() - began < 1


def test_twice_is_once():
    for text in random_texts(seed=2):
        once = detokenize(text)
        assert detokenize(once) == once


def test_what_the_tokenizer_breaks_is_restored():
    caption = "Chest X-ray: a 3.5 x 2 cm mass (arrow), right-sided; the patient's 70% stenosis."
    pieces = re.findall(r"[a-z]+|\d+|\S", caption.lower())
    vocab = {
        piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)])
    }
    tokenizer = BertTokenizerFast(vocab=vocab, do_lower_case=True)
    decoded = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert decoded.startswith("chest x - ray : a 3. 5 x 2 cm mass ( arrow ), right - sided ;")
    assert detokenize(decoded) == caption.replace("Chest", "chest")


# --- known terms ---


@pytest.mark.parametrize(
    "text",
    [
        "FDG-PET/CT, T2-weighted, T1W", "disc at L4-L5 and C7", "SARS-CoV-2", "SUVmax of 3.5", "1.5 MHz", "30 kVp",
        "Crohn's disease on Doppler US", "type II endoleak", "an X-ray of the IVC", "(-78 HU)",
    ],
)  # fmt: skip
def test_known_terms_have_their_capitals(text):
    assert detokenize(text.lower()) == text


@pytest.mark.parametrize(
    "text", ["octopus", "directly", "x 3 cm", "t 2", "l60x", "_ct_", "tips of the cap", "5ct", "d2", "i"]
)
def test_other_words_keep_their_letters(text):
    assert detokenize(text) == text


def test_no_term_is_listed_twice():
    listed = [*UPPER.split(), *MIXED.lower().split()]
    assert len(set(listed)) == len(listed)
