"""Detokenization restores spacing and the case of known terms, and changes nothing else."""

import random
import re

import pytest
from transformers import BertTokenizerFast

from medcap.data import detokenize as detokenization
from medcap.data.detokenize import RULES, detokenize
from medcap.data.truecasing import MIXED, UPPER

CASES = {
    # trivial
    "empty": ("", ""),
    "spaces only": (" \u00a0\n ", ""),
    "one word": ("pneumothorax", "pneumothorax"),
    "one punctuation mark": ("-", "-"),
    "punctuation only": ("( - ) / '", "(-) / '"),
    "unchanged": ("no focal lesion, no effusion.", "no focal lesion, no effusion."),
    "other white space": ("a\u202fsmall\n\ncyst ", "a small cyst"),
    # numbers
    "decimal": ("a nodule of 3. 5 cm.", "a nodule of 3.5 cm."),
    "decimals and a product": ("10. 5 x 2. 25 x 0. 8 mm", "10.5 x 2.25 x 0.8 mm"),
    "decimal without space before the unit": ("a 1. 5cm stone", "a 1.5cm stone"),
    "full stop before a word": ("segment 2. the left lobe", "segment 2. the left lobe"),
    "full stop before a bracket": ("grade 2. ( b ) later", "grade 2. (b) later"),
    "full stop after the number of a figure": ("as in fig. 1. 3 weeks later", "as in fig. 1. 3 weeks later"),
    "full stop before a number: known error": ("on day 3. 5 days later", "on day 3.5 days later"),
    "figure number": ("see fig. 2", "see fig. 2"),
    "list of numbers": ("b values of 50, 400, 800", "b values of 50, 400, 800"),
    "ratio": ("diluted 1 : 3 in saline", "diluted 1:3 in saline"),
    "year before a colon is not a ratio": ("in may 2016 : 64 slices", "in may 2016: 64 slices"),
    "thousands": ("19, 150 cells, 214, 000 of 1, 769. 0 ml", "19,150 cells, 214,000 of 1,769.0 ml"),
    "range of thousands": ("0 – 1, 800 mm, 1, 800 – 2, 700 mm", "0–1,800 mm, 1,800–2,700 mm"),
    "list of numbers before and": ("b values of 50, 400 and 800", "b values of 50, 400 and 800"),
    "list of pairs, and dates": ("july 31, 2009, stages 5, 6 ( 1, 2 )", "july 31, 2009, stages 5, 6 (1, 2)"),
    "decimal comma": ("suvmax = 26, 08, ratio 0, 6, l 3, 21", "SUVmax = 26,08, ratio 0,6, l 3,21"),
    "citations at the end": ("the method of kim. 14, 15", "the method of kim. 14,15"),
    "chelator": ("gallium - 68 1, 4, 7, 10 - tetraaza", "gallium-68 1,4,7,10-tetraaza"),
    "figure number before a number": ("as in fig. 1. 3 weeks later", "as in fig. 1. 3 weeks later"),
    "broken nuclide": ("lymph nodes. 6. 8. ga", "lymph nodes. 6. 8. ga"),
    "decimal before a sentence": ("uptake was 5. 1. no mass", "uptake was 5.1. no mass"),
    "decimal and a quotient": ("haller index 4. 72 : 274 / 58", "haller index 4.72: 274/58"),
    "citations": ("as reported [ 4, 5, 16 ]", "as reported [4,5,16]"),
    "decimal comma or list in round brackets": ("( 4, 5 )", "(4, 5)"),
    "date": ("on 12 / 05 / 2020", "on 12/05/2020"),
    "plus or minus": ("5. 5 ± 0. 3 cm, 4 + / - 1", "5.5 ± 0.3 cm, 4 +/- 1"),
    "clock time": ("cyst at 12 : 30", "cyst at 12:30"),
    "level before a colon is not a ratio": ("l1 : 25 degrees", "L1: 25 degrees"),
    "product by asterisk": ("a 3. 5 * 2 * 1 cm cyst", "a 3.5*2*1 cm cyst"),
    "range by tilde": ("15 ~ 20 mm", "15~20 mm"),
    "approximately": ("a ~ 4 mm polyp", "a ~4 mm polyp"),
    "number sign": ("tooth # 23", "tooth #23"),
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
    "abbreviation and another word": ("ct - colonography", "CT-colonography"),
    "abbreviation of letters within words": (
        "flair - fluid - attenuated inversion recovery, kub - kidney, ureter, bladder",
        "FLAIR - fluid-attenuated inversion recovery, KUB - kidney, ureter, bladder",
    ),
    "abbreviation of a side": ("rt - right, lt - left", "RT - right, LT - left"),
    "abbreviation before another": ("psma - pet scan", "PSMA-PET scan"),
    "prefix is not an abbreviation": ("post - procedure of", "post-procedure of"),
    "title before a view": ("ct of the pelvis - coronal view", "CT of the pelvis - coronal view"),
    "title before its number": ("mri - image 2", "MRI - image 2"),
    "image in a compound": ("image - guided", "image-guided"),
    "formula of journals": ("higher resolution / colour version", "higher resolution / colour version"),
    "names of sequences": ("t2 _ tse", "t2_tse"),
    "double asterisk": ("line * *, arrow", "line **, arrow"),
    "view before a description": ("axial view - a large mass", "axial view - a large mass"),
    "hyphen after a bracket": ("emission ( pet ) - ct", "emission (PET)-CT"),
    "hyphen without neighbor": ("- left lung -", "- left lung -"),
    "slash": ("pet / ct, 12 mg / dl", "PET/CT, 12 mg/dl"),
    "arrow of a legend": ("black arrow - lesser sac", "black arrow - lesser sac"),
    "arrow in a compound": ("arrow - marked area", "arrow-marked area"),
    "number of an image beside a word": ("mri of the brain - image 1the", "MRI of the brain - image 1the"),
    "plane in a compound": ("mid - coronal view", "mid-coronal view"),
    "letter of a side": ("hemipelvis ( l - left )", "hemipelvis (l - left)"),
    # legends
    "legend after sentences": (
        "a mass. no edema on ct. ct : computed tomography",
        "a mass. no edema on CT.CT: computed tomography",
    ),
    "legend after one sentence": ("edema on ct. ct : computed", "edema on CT. CT: computed"),
    "legend with a full stop": ("a mass. seen on ct. ct : computed.", "a mass. seen on CT. CT: computed."),
    "legend of an unused abbreviation": ("a mass. no edema. ct : computed", "a mass. no edema. CT: computed"),
    "list of abbreviations": ("the lung. abbreviations : tb, other", "the lung.abbreviations: TB, other"),
    # brackets, quotes, apostrophes
    "brackets": ("mass ( white arrow ), edema [ b ]", "mass (white arrow), edema [b]"),
    "panel letters": ("( a ) before, ( b - d ) after", "(a) before, (b-d) after"),
    "nested brackets": ("( thin ( 2 mm ) wall ).", "(thin (2 mm) wall)."),
    "plural in brackets": ("node ( s ).", "node (s)."),
    "colon and semicolon": ("lv : left ventricle ; ra : right atrium", "LV: left ventricle; RA: right atrium"),
    "possessive": ("crohn ' s disease", "Crohn's disease"),
    "curly possessive": ("the patient ’ s spine", "the patient’s spine"),
    "possessive without spaces": ("the patient's spine", "the patient's spine"),
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
    # other scripts and symbols
    "degrees": ("rotated by 30° - 45°", "rotated by 30°-45°"),
    "times": ("3. 5 × 2 mm", "3.5 × 2 mm"),
    "greek": ("a β - blocker", "a β-blocker"),
}
WORDS = (
    "a b o d l s t ct c mri t2 x ray view scan computed tomography and or to of is e i.e. the 3 5 10 3. 10. a. 5cm l4"
)
MARKS = ", . : ; % ( ) [ ] { } \" ' ’ ‘ “ ” - – — ‐ / * # ~ + < > = ° × é µ [UNK] \u202f"
PIECES = [*WORDS.split(" "), *MARKS.split(" ")]


def random_texts(n=2000, max_pieces=14, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(PIECES, k=rng.randint(0, max_pieces))) for _ in range(n)]


@pytest.mark.parametrize(("decoded", "restored"), CASES.values(), ids=CASES)
def test_decoded_text_is_restored(decoded, restored):
    assert detokenize(decoded) == restored


@pytest.mark.parametrize("restored", [restored for _, restored in CASES.values()], ids=CASES)
def test_restored_text_is_not_changed(restored):
    assert detokenize(restored) == restored


@pytest.mark.parametrize("rule", RULES, ids=[pattern.pattern for pattern, _ in RULES])
def test_every_rule_is_needed(monkeypatch, rule):
    monkeypatch.setattr(detokenization, "RULES", [other for other in RULES if other is not rule])
    assert any(detokenize(decoded) != restored for decoded, restored in CASES.values())


def test_only_spaces_and_case_change():
    for text in random_texts():
        assert "".join(detokenize(text).split()).lower() == "".join(text.split()).lower()


def random_numbers(rng):
    """Decoded numbers between words, with spaces around each punctuation mark."""
    a, b, c = (rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 2030))) for _ in range(3))
    templates = (
        "{a}. {b}", "{a} - {b}", "{a}. {b} - {c} mm", "{a}, {b}", "{a}, 000", "{a} : {b}", "{a} / {b} / {c}", "{a} %",
        "l{a} - l{b}", "l{a} - {b}", "t{a}", "{a} x {b} x {c} cm", "{a} × {b}", "{a} * {b}", "+ / - {a}", "± {a}",
        "- {a}", "( - {a} )", "[ {a}, {b}, {c} ]", "# {a}", "~ {a} ~ {b}", "< {a}", "{a}° - {b}°", "{a} ' {b} \"",
        "{a} - year - old",
    )  # fmt: skip
    return " ".join(f"{rng.choice(WORDS.split())} {rng.choice(templates).format(a=a, b=b, c=c)}" for _ in range(3))


def test_numbers_are_not_changed():
    rng = random.Random(1)
    for text in [*random_texts(seed=1), *(random_numbers(rng) for _ in range(3000))]:
        restored = detokenize(text)
        assert re.findall(r"\d+", restored) == re.findall(r"\d+", text)
        assert detokenize(restored) == restored


def test_detokenize_is_idempotent():
    for text in random_texts(seed=2):
        once = detokenize(text)
        assert detokenize(once) == once


def test_tokenized_caption_is_restored():
    caption = "Chest X-ray: a 3.5 x 2 cm mass (arrow), right-sided; the patient's 70% stenosis."
    pieces = re.findall(r"[a-z]+|\d+|\S", caption.lower())
    vocab = {
        piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)])
    }
    tokenizer = BertTokenizerFast(vocab=vocab, do_lower_case=True)
    decoded = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert decoded.startswith("chest x - ray : a 3. 5 x 2 cm mass ( arrow ), right - sided ;")
    assert detokenize(decoded) == caption.replace("Chest", "chest")


@pytest.mark.parametrize(
    "text",
    [
        "FDG-PET/CT, T2-weighted, T1W", "disc at L4-L5 and C7", "SARS-CoV-2", "SUVmax of 3.5", "1.5 MHz", "30 kVp",
        "Crohn's disease on Doppler US", "type II endoleak", "an X-ray of the IVC", "(-78 HU)",
    ],
)  # fmt: skip
def test_case_of_known_terms_is_restored(text):
    assert detokenize(text.lower()) == text


@pytest.mark.parametrize(
    "text", ["octopus", "directly", "x 3 cm", "t 2", "l60x", "_ct_", "tips of the cap", "5ct", "d2", "i"]
)
def test_case_of_other_words_is_unchanged(text):
    assert detokenize(text) == text


def test_terms_are_not_repeated():
    listed = [*UPPER.split(), *MIXED.lower().split()]
    assert len(set(listed)) == len(listed)
