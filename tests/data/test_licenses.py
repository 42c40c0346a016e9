"""Licenses and articles are read, and restrictions of commercial use are recognized."""

import pytest

from medcap.data.licenses import Source, allows_commercial_use, groups_in_several, license_of, read_sources

LICENSES = {
    "CC BY [Muller et al. (2022)]": "CC BY",
    "CC BY-NC-SA 4.0": "CC BY-NC-SA",
    "cc-by-nc": "CC BY-NC",
    "CC BY NC ND 3.0": "CC BY-NC-ND",
    "figure.png | patient 5 | CC BY-SA": "CC BY-SA",
    "CCBY": "CC BY",
    "CC-BY-SA-4.0": "CC BY-SA",
    "CC_BY_NC": "CC BY-NC",
    "CC BY\u2013NC": "CC BY-NC",
    "CC BY/ND": "CC BY-ND",
    "CC BY-NonCommercial 4.0": "CC BY-NC",
    "CC BY-NoDerivatives": "CC BY-ND",
    "CC BY [Sa et al. (2022)]": "CC BY",
    "CC BY [Nc, Nd (2020)]": "CC BY",
    "Creative Commons Attribution 4.0 International": "CC BY",
    "Creative Commons Attribution-NonCommercial-ShareAlike 4.0": "CC BY-NC-SA",
    "Creative Commons Attribution Non Commercial No Derivs (CC BY-NC-ND)": "CC BY-NC-ND",
    "CC0123.png | patient 5 | CC BY-NC": "CC BY-NC",
    "CC0 1.0": "CC0",
    "a work in the public domain": "public domain",
    "CC BY 4.0 (Non-Commercial)": "CC BY-NC",
    "CC BY, non-commercial use only": "CC BY-NC",
    "CC BY 4.0; figure: CC BY-NC 4.0": "CC BY-NC",
    "CC BY-SA 4.0; figure 2: CC BY-ND": "CC BY-ND",
    "CC0; text CC BY": "CC BY",
    "cc-by-4.0-nc": "CC BY-NC",
    "CC BY 4.0, NC": "CC BY-NC",
    "CC BY. Not for commercial use": "CC BY-NC",
    "CC BY, commercial use needs permission": "CC BY-NC",
    "CC BY, for research use only": "CC BY-NC",
    "CC BY\u2212NC": "CC BY-NC",
    "CC BY 4.0 noncommercial": "CC BY-NC",
    "https://creativecommons.org/licenses/by/4.0/": "CC BY",
    "CC BY (https://creativecommons.org/licenses/by-nc/4.0/)": "CC BY-NC",
    "https://creativecommons.org/publicdomain/zero/1.0/": "CC0",
    "CC BY (NonComm.)": "CC BY-NC",
    "CC BY-N.C.": "CC BY-NC",
    "CC BY 4.0 (academic research)": "CC BY-NC",
    "CC BY 4.0; not-for-profit use": "CC BY-NC",
    "CC BY 4.0 for personal use": "CC BY-NC",
    "CC BY 4.0 (nicht kommerziell)": "CC BY-NC",
    "CC BY 4.0 (\uff2e\uff23)": "CC BY-NC",
    "CC BY 4.0, no modifications": "CC BY-ND",
    "CC BY 4.0; commercial use allowed": "CC BY",
    "CC BY 4.0. All rights reserved": None,
    "CC BY, figure with permission of the publisher": None,
    "public domain, not for commercial use": None,
    "CC BYRNE": None,
    "ACC BY mistake": None,
    "all rights reserved": None,
    "\u00a9 Elsevier": None,
    "": None,
}


@pytest.mark.parametrize(("text", "expected"), LICENSES.items())
def test_license_is_read_from_attribution(text, expected):
    assert license_of(text) == expected


COMMERCIAL = {"CC BY": True, "CC BY-SA": True, "CC0": True, "public domain": True, "CC BY-NC": False,
              "CC BY-ND": False, "CC BY-NC-SA": False, "CC BY-NC-ND": False, None: False, "my own": False}  # fmt: skip


@pytest.mark.parametrize(("name", "allowed"), COMMERCIAL.items())
def test_commercial_use_is_allowed_by_known_licenses_only(name, allowed):
    assert allows_commercial_use(name) == allowed


def test_source_has_license_and_article_or_patient(tmp_path):
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


SUBJECTS = {"x.png | Patient 5 | CC BY": "patient 5", "case 12. CC BY": "case 12", "case A-7b": "case A-7b",
            "CC BY [Case et al. (2020)]": None, "a case report": None, "": None}  # fmt: skip


@pytest.mark.parametrize(("attribution", "group"), SUBJECTS.items())
def test_group_is_patient_or_case_if_there_is_no_article(tmp_path, attribution, group):
    (tmp_path / "license_information.csv").write_text(f'ID,PMCID,Attribution\r\na, ,"{attribution}"\r\n')
    assert read_sources(tmp_path)["a"].group == group


def test_image_with_two_sources_raises(tmp_path):
    (tmp_path / "license_information.csv").write_text("ID,PMCID,Attribution\na,PMC1,CC BY\na,PMC2,CC BY\n")
    with pytest.raises(ValueError, match=r"license_information.csv: repeated ids: a$"):
        read_sources(tmp_path)


def test_groups_in_several_splits():
    groups = {"train": ["a", "b", None, "a"], "valid": [None, "b"], "test": ["b", "c"]}
    assert groups_in_several(groups) == {"b": ["train", "valid", "test"]}
