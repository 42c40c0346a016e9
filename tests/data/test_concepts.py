"""Concepts and words name modality and region; licences and articles are read from their table."""

import pytest

from medcap.data.concepts import (
    MODALITIES,
    REGIONS,
    concept_names,
    modality_in_words,
    modality_of,
    region_of,
    split_cuis,
)
from medcap.data.licenses import Source, allows_commercial_use, groups_in_several, license_of, read_sources

WORDS = {
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
    "Contrast us and them": "ultrasound",  # a word that key words cannot tell
}


@pytest.mark.parametrize(("caption", "modality"), WORDS.items())
def test_words_name_a_modality(caption, modality):
    assert modality_in_words(caption) == modality


@pytest.mark.parametrize(("cui", "name"), MODALITIES.items())
def test_every_modality_concept_is_known(cui, name):
    assert modality_of(["C0817096", cui]) == name


@pytest.mark.parametrize(("cui", "name"), REGIONS.items())
def test_every_region_concept_is_known(cui, name):
    assert region_of(["C1306645", cui]) == name


def test_no_concepts_name_nothing():
    assert (modality_of([]), region_of(["C0000001"])) == (None, None)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("C1;C2", ["C1", "C2"]), (" C1 ; ", ["C1"]), ("", []), (None, []), (["C1", ""], ["C1"]), ([], [])],
)
def test_cells_become_lists(cell, expected):
    assert split_cuis(cell) == expected


def test_names_are_joined_from_the_mapping(tmp_path):
    assert concept_names(tmp_path) == {}
    (tmp_path / "cui_mapping.csv").write_text('CUI,Canonical name\r\nC1,"Mass, left"\r\n')
    assert concept_names(tmp_path) == {"C1": "Mass, left"}


LICENSES = {
    "CC BY [Muller et al. (2022)]": "CC BY",
    "CC BY-NC-SA 4.0": "CC BY-NC-SA",
    "cc-by-nc": "CC BY-NC",
    "CC BY NC ND 3.0": "CC BY-NC-ND",
    "figure.png | patient 5 | CC BY-SA": "CC BY-SA",
    "CC0 1.0": "CC0",
    "a work in the public domain": "public domain",
    "CC BYRNE": None,
    "ACC BY mistake": None,
    "all rights reserved": None,
    "": None,
}


@pytest.mark.parametrize(("text", "expected"), LICENSES.items())
def test_licences_are_read_from_attributions(text, expected):
    assert license_of(text) == expected


COMMERCIAL = {"CC BY": True, "CC BY-SA": True, "CC0": True, "public domain": True, "CC BY-NC": False,
              "CC BY-ND": False, "CC BY-NC-SA": False, "CC BY-NC-ND": False, None: False, "my own": False}  # fmt: skip


@pytest.mark.parametrize(("name", "allowed"), COMMERCIAL.items())
def test_only_a_licence_known_to_allow_it_allows_commercial_use(name, allowed):
    assert allows_commercial_use(name) == allowed


def test_sources_name_article_patient_or_nothing(tmp_path):
    (tmp_path / "license_information.csv").write_text(
        "ID,PMCID,Attribution,Link\r\n"
        "a,PMC7,CC BY [A],x\r\nb,,f.png | patient 12 | CC BY-NC,x\r\nc,,\u00a9 Publisher,x\r\n",
        encoding="utf-8-sig",
    )
    assert read_sources(tmp_path) == {
        "a": Source("CC BY", "PMC7"),
        "b": Source("CC BY-NC", "patient 12"),
        "c": Source(None, None),
    }
    assert read_sources(tmp_path / "none") == {}


def test_groups_in_several_splits_are_found():
    groups = {"train": ["a", "b", None, "a"], "valid": [None, "b"], "test": ["b", "c"]}
    assert groups_in_several(groups) == {"b": ["train", "valid", "test"]}
