"""Terms of radiology that are written with capitals, given back to text that a tokenizer has lower-cased.

A table of common knowledge, no text of any caption: a term is here when readers expect its capitals in the midst of a
sentence and no everyday word is spelt the same ("tips", "cap" and "de" are not). "us", "stir" and "tee" are: of 41,
22 and 28 in a random half of ROCOv2's valid captions, all but one were ultrasound and the like.
"""

import re

UPPER = """
    adc ap cbct cect ct cta ctpa cxr dect dsa dwi ecg eeg ercp eus fdg flair hrct hsg kub mdct mip mpr mr mra mrcp mri
    mrv nect opg pet pocus psma roi spect ssfp stir suv swi tee tof tte us usg vcug
    aca avf avm cbd cca cfa cmc dip eca ica ijv ivc lad lao lca lmca lpa lv lvef lvot mca mcp mtp pa pca pcl pda
    pfo ra rao rca rpa rul rv rvot sma smv svc la
    ards asd avn cabg chf cll copd covid csf cvc dlbcl dvt ggo gist hcc hiv icd icu ich iv mlo ncc nsclc pci rcc sah
    sars sdh tapse tb tevar tha timi tka vsd
    hu lt rt
    ii iii vi vii viii ix xi xii
"""
MIXED = """
    MHz kHz Hz kV kVp kPa mGy cGy Gy MBq mCi mmHg SUVmax SUVmean LCx CoV
    Achilles Baastrup Chiari Cobb Crohn Doppler Fontan Foley Hodgkin Hounsfield Kerley Meckel Roentgen Valsalva
"""
TERMS = {term: term.upper() for term in UPPER.split()} | {term.lower(): term for term in MIXED.split()}
NUMBERED = re.compile(r"[clst]\d\d?|t[12](?:wi?|fs|ce)")  # vertebrae and roots; weightings: t2, t1w
_WORD = re.compile(r"(?<!\w)(?:[a-z]{2,11}|[clst]\d\d?[a-z]{0,2}|x(?=-ray))(?!\w)")


def is_term(word: str) -> bool:
    """Whether `word`, in lower case, is one of the table or the name of a vertebra or a weighting."""
    return word in TERMS or NUMBERED.fullmatch(word) is not None


def write_terms(text: str) -> str:
    """Return `text` with known terms in capitals: "fdg-pet", "x-ray", "t2-weighted" -> "FDG-PET", "X-ray", ..."""
    return _WORD.sub(lambda word: _written(word[0]), text)


def _written(word: str) -> str:
    return TERMS.get(word) or (word.upper() if word == "x" or NUMBERED.fullmatch(word) else word)
