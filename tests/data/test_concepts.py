"""Modality and region are read from concepts and captions."""

import pytest

from medcap.data.concepts import (
    MODALITY_BY_CUI,
    REGION_BY_CUI,
    concept_names,
    modality_in_words,
    modality_of,
    region_of,
    split_cuis,
)
from medcap.data.rocov2 import read_rocov2

CAPTIONS = {
    "A CT of the neck": "CT",
    "Contrast-enhanced computed tomography": "CT",
    "CBCT of the mandible": "CT",
    "Coronary CT angiography": "CT",
    "HRCT with cysts": "CT",
    "A chest x-ray": "X-ray",
    "CXR on day 3": "X-ray",
    "Panoramic radiograph": "X-ray",
    "An orthopantomograph": "X-ray",
    "Mammography, left": "X-ray",
    "T2-weighted image of the knee": "MRI",
    "MR angiography": "MRI",
    "Axial FLAIR": "MRI",
    "Transvaginal ultrasound": "ultrasound",
    "An echocardiogram": "ultrasound",
    "EUS of the pancreas": "ultrasound",
    "Digital subtraction angiography": "angiography",
    "Cholangiography under fluoroscopy": "X-ray",
    "FDG-PET/CT": "combined",
    "PET scan": "PET",
    "A nodule in the left lung": None,
    "The act was direct, as shown": None,
    "Contrast us and them": None,
    "contrast us and them": "ultrasound",  # a known error: the pronoun, in a text without capitals
}


@pytest.mark.parametrize(("caption", "modality"), CAPTIONS.items())
def test_modality_is_found_by_keywords(caption, modality):
    assert modality_in_words(caption) == modality


@pytest.mark.parametrize(("cui", "name"), MODALITY_BY_CUI.items())
def test_modality_is_found_by_concept(cui, name):
    assert modality_of(["C0817096", cui]) == name


@pytest.mark.parametrize(("cui", "name"), REGION_BY_CUI.items())
def test_region_is_found_by_concept(cui, name):
    assert region_of(["C1306645", cui]) == name


def test_unknown_concepts_have_no_modality_or_region():
    assert (modality_of([]), region_of(["C0000001"])) == (None, None)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("C1;C2", ["C1", "C2"]), (" C1 ; ", ["C1"]), ("", []), (None, []), (["C1", "", None], ["C1"]), ([], [])],
)
def test_cells_are_split_into_concepts(cell, expected):
    assert split_cuis(cell) == expected


def test_concept_names_are_read(tmp_path):
    assert concept_names(tmp_path) == {}
    (tmp_path / "cui_mapping.csv").write_text('CUI,Canonical name\r\nC1,"Mass, left"\r\n')
    assert concept_names(tmp_path) == {"C1": "Mass, left"}


def test_concepts_are_joined_by_id(tmp_path):
    (tmp_path / "valid_captions.csv").write_text("ID,Caption\r\na,x\r\nb,y\r\nc,z\r\n")
    (tmp_path / "valid_concepts.csv").write_text("ID,CUIs\r\nb,C2\r\na,C1;C0040405\r\nc,\r\n")
    (tmp_path / "valid_concepts_manual.csv").write_text("ID,CUIs\r\na,C0040405\r\nb,\r\n")
    rows = read_rocov2(tmp_path)["valid"]
    assert rows["cuis"][:] == [["C1", "C0040405"], ["C2"], []]
    assert rows["manual_cuis"][:] == [["C0040405"], [], []]


def test_ids_that_match_nothing_are_named(tmp_path, caplog):
    (tmp_path / "train_captions.csv").write_text("ID,Caption\na1,x\na2,y\n")
    (tmp_path / "train_concepts.csv").write_text("ID,CUIs\nb1,C1\n")
    assert read_rocov2(tmp_path)["train"]["cuis"][:] == [[], []]
    assert "train_concepts.csv is not used: none of its ids has a caption: it has b1; the captions have a1, a2" in (
        caplog.text
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "c1.png").touch()
    with pytest.raises(
        ValueError, match=r"no image of .* has an id of train_captions\.csv: it has c1; the captions have a"
    ):
        read_rocov2(tmp_path, ["train"])
