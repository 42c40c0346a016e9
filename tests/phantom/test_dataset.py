"""Phantoms have the layout of ROCOv2, the same bytes for a seed, and captions that state their facts."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcap.data.load import load_data
from medcap.data.selection import check_images
from medcap.phantom.captions import caption_of
from medcap.phantom.dataset import write_phantom
from medcap.phantom.images import FACT_VALUES, Phantom, draw, random_phantom
from medcap.phantom.truth import stated_facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantom(out, train=120, valid=5, test=7, seed=3)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_bytes_depend_on_the_seed_only(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "again", train=120, valid=5, test=7, seed=3)
    write_phantom(tmp_path / "other", train=120, valid=5, test=7, seed=4)
    assert contents(tmp_path / "again") == contents(folder)
    assert contents(tmp_path / "other")["train_images.zip"] != contents(folder)["train_images.zip"]


def test_files_are_those_of_zenodo_and_findings(folder: Path) -> None:
    names = set(contents(folder))
    for split in ("train", "valid", "test"):
        suffixes = ("images.zip", "captions.csv", "concepts.csv", "concepts_manual.csv", "findings.json")
        assert {f"{split}_{suffix}" for suffix in suffixes} <= names
    assert {"cui_mapping.csv", "license_information.csv"} <= names
    for name, content in contents(folder).items():
        if name.endswith(".csv"):
            assert content.count(b"\n") == content.count(b"\r\n") > 1
    with zipfile.ZipFile(folder / "train_images.zip") as archive:
        assert all(name.startswith("train/PHANTOM_train_") for name in archive.namelist())


def test_phantoms_load_as_rocov2(folder: Path) -> None:
    data = load_data(folder)
    assert {split: len(check_images(rows, max_broken=0)) for split, rows in data.items()} == {
        "train": 120, "valid": 5, "test": 7,
    }  # fmt: skip
    mapping = {row["CUI"] for row in csv.DictReader(io.StringIO((folder / "cui_mapping.csv").read_text()))}
    assert {cui for cuis in data["train"]["cuis"] for cui in cuis} <= mapping


def test_images_are_gray_rgb_and_16_bit(folder: Path) -> None:
    with zipfile.ZipFile(folder / "train_images.zip") as archive:
        modes = [Image.open(archive.open(name)).mode for name in archive.namelist()]
    assert set(modes) == {"L", "RGB", "I;16"}
    assert modes.count("I;16") < 10


def test_captions_state_exactly_the_facts(folder: Path) -> None:
    captions = dict(zip(*(load_data(folder)["train"][key] for key in ("image_id", "caption")), strict=True))
    truth = json.loads((folder / "train_findings.json").read_text())
    assert captions.keys() == truth.keys()
    for image_id, facts in truth.items():
        stated = stated_facts(captions[image_id])
        assert stated["modality"] == facts["modality"], captions[image_id]
        finding = facts["findings"][0] if facts["findings"] else {}
        assert [stated[fact] for fact in ("side", "level", "finding")] == [
            finding.get(fact) for fact in ("side", "level", "finding")
        ], captions[image_id]


def test_captions_vary() -> None:
    rng = np.random.default_rng(0)
    phantom = Phantom("x-ray", "mass", "right", "upper", "large", 4.2)
    captions = [caption_of(phantom, rng) for _ in range(200)]
    assert len(set(captions)) > 60
    for sign in ("(arrow)", "4.2 cm", " x ", "-year-old"):
        assert any(sign in caption for caption in captions), sign


@pytest.mark.parametrize("modality", FACT_VALUES["modality"])
@pytest.mark.parametrize("side", FACT_VALUES["side"])
def test_right_of_the_patient_is_on_the_left_of_the_image(modality: str, side: str) -> None:
    facts = {"modality": modality, "side": side, "level": "middle", "size": "large", "diameter_cm": 5.0}
    with_finding = draw(Phantom(finding="mass", **facts), np.random.default_rng(1), 96, 96)
    bright = with_finding[30:66].mean(0)
    left, right = bright[10:44].mean(), bright[52:86].mean()
    assert (left > right) == (side == "right")


def test_facts_are_uniformly_distributed() -> None:
    rng = np.random.default_rng(0)
    phantoms = [random_phantom(rng) for _ in range(3000)]
    for fact in ("modality", "side", "level", "size"):
        values = FACT_VALUES[fact]
        fractions = [sum(getattr(p, fact) == value for p in phantoms) / 3000 for value in values]
        assert fractions == pytest.approx([1 / len(values)] * len(values), abs=0.04)
    assert {p.finding for p in phantoms} == {*FACT_VALUES["finding"], None}
    assert all((p.diameter_cm < 2) == (p.size == "small") for p in phantoms)


def test_folder_that_is_not_empty_raises(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is never overwritten"):
        write_phantom(tmp_path, train=1, valid=1, test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_empty_split_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid is 0"):
        write_phantom(tmp_path / "new", train=1, valid=0, test=1)
