"""Findings in a denial, an indication or a history are not present; words inside other words are not findings."""

import pytest

from medcap.metrics.clinical.facts import extract_facts

# caption: (findings, negated findings)
DENIALS = {
    "CT does not show pneumothorax.": ((), ("pneumothorax",)),
    "MRI did not demonstrate any infarct or hemorrhage.": ((), ("infarct", "hemorrhage")),
    "The film does not clearly reveal a fracture.": ((), ("fracture",)),
    "Angiography: no contrast extravasation.": ((), ("leak",)),
    "CT without contrast shows a mass.": (("mass",), ()),
    "The heart is not enlarged.": ((), ("cardiomegaly",)),
    "No remarkable findings.": ((), ("abnormality",)),
    "Resolved effusion on the left.": ((), ("effusion",)),
    "The effusion has resolved.": ((), ("effusion",)),
    "Partial resolution of the lesion.": (("lesion",), ()),
    "There is no edema, hemorrhage, infarct or neoplasm.": ((), ("edema", "hemorrhage", "infarct", "mass")),
    "No effusion, enlarged nodes or nodules.": ((), ("effusion", "nodule", "lymphadenopathy")),
    "No pneumothorax, small effusion on the right.": (("effusion",), ("pneumothorax",)),
    "No embolism but consolidation.": (("consolidation",), ("embolism",)),
    "No enhancement of the mass.": (("mass",), ("enhancement",)),
    "No evidence of the mass.": ((), ("mass",)),
    "No clots within the artery to suggest pulmonary embolism.": ((), ("thrombus", "embolism")),
    "A stone, hydronephrosis or cyst was not seen.": ((), ("stone", "hydronephrosis", "cyst")),
    "Effusion: none.": ((), ("effusion",)),
    "Non-enhancing lesion.": (("lesion",), ("enhancement",)),
    "Nodule in case no. 3.": (("nodule",), ()),
    "No change of the nodule.": (("nodule",), ()),
    "An abscess cannot be excluded.": (("abscess",), ()),
    "Findings suspicious for metastasis.": (("metastasis",), ()),
    "CT to rule out pulmonary embolism.": ((), ()),
    "Ultrasound to rule out thrombosis shows a cyst.": (("cyst",), ()),
    "Fracture was ruled out.": ((), ("fracture",)),
    "A man with a history of stroke presenting with hemorrhage.": (("hemorrhage",), ()),
    "A woman with a 2-year history of a nodule.": (("nodule",), ()),
}
# caption: (kind, values)
WORDS = {
    "encephalomalacia": ("modality", ()),
    "stone at the renal hilum": ("region", ("abdomen",)),
    "image of the C-arm": ("region", ()),
    "fracture of the C1 lateral mass": ("finding", ("fracture",)),
    "aneurysmal bone cyst": ("finding", ("cyst",)),
    "chondroblastoma": ("finding", ("mass",)),
    "internal mammary artery": ("region", ("chest",)),
    "HRCT of the temporal bone": ("region", ("skull",)),
    "right atrium": ("laterality", ()),
    "abdominal distension": ("finding", ("dilatation",)),
    "collapse of the left lower lobe": ("finding", ("atelectasis",)),
    "lobar collapse": ("finding", ("atelectasis",)),
    "collapse of the vertebra": ("finding", ("collapse",)),
    "acute stroke": ("finding", ("infarct",)),
    "radiation pneumonitis": ("finding", ("pneumonitis",)),
    "the rim enhances": ("finding", ("enhancement",)),
    "contrast-enhanced CT": ("finding", ()),
    "sclerosis, pneumatosis and a vegetation": ("finding", ("pneumatosis", "sclerosis", "vegetation")),
    "sialadenitis": ("finding", ("sialadenitis",)),
    "the diagnosis": ("finding", ()),
}
NUMBERS = {
    "angulated 87° caudal": ["87 degrees"],
    "38.5 °C, or 38° C": [],
    "1, 300 ml": ["1300 mL"],
    "1,200 ml": ["1200 mL"],
    "4, 5 cm": ["45 mm"],
    "4,5 cm": ["45 mm"],
    "2, 3 and 4 cm": ["20 mm", "30 mm", "40 mm"],
    "as in fig. 1. 3 weeks later": ["21 days"],
    "2 x 3 cm": ["20 mm", "30 mm"],
    "-20 HU": ["-20 HU"],
}  # fmt: skip


@pytest.mark.parametrize("caption", DENIALS)
def test_findings_and_negated_findings(caption):
    facts = extract_facts(caption)
    present, negated = DENIALS[caption]
    assert (facts["finding"], facts["negation"]) == (set(present), set(negated))


@pytest.mark.parametrize("caption", WORDS)
def test_words_inside_words_and_missed_words(caption):
    kind, values = WORDS[caption]
    assert extract_facts(caption)[kind] == set(values)


@pytest.mark.parametrize("caption", NUMBERS)
def test_numbers_with_units(caption):
    assert sorted(extract_facts(caption)["number"]) == NUMBERS[caption]
