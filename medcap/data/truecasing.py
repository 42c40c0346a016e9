"""Restore the capitals of radiology terms in text that a tokenizer has lower-cased.

A term is in the table if it is written with capitals within a sentence and is not spelled like an everyday word, which
excludes "tips", "cap" and "de". "us", "stir" and "tee" are included: in a random half of ROCOv2's valid captions all
but one of their 41, 22 and 28 occurrences were abbreviations. The table contains no text of captions.
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
NUMBERED = re.compile(r"[clst]\d\d?|t[12](?:wi?|fs|ce)")  # vertebrae, nerve roots, and weightings: t2, t1w
_WORD = re.compile(r"(?<!\w)(?:[a-z]{2,11}|[clst]\d\d?[a-z]{0,2}|x(?=-ray))(?!\w)")


def is_term(word: str) -> bool:
    """Return whether `word`, in lower case, is in the table or names a vertebra or a weighting."""
    return word in TERMS or NUMBERED.fullmatch(word) is not None


def write_terms(text: str) -> str:
    """Return `text` with the capitals of known terms: "fdg-pet", "x-ray" -> "FDG-PET", "X-ray"."""
    return _WORD.sub(lambda word: _written(word[0]), text)


def _written(word: str) -> str:
    return TERMS.get(word) or (word.upper() if word == "x" or NUMBERED.fullmatch(word) else word)
