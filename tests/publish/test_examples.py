"""Example images of a card: chosen by licence, named with their source, and checked again before publication.

pytest tests/publish/test_examples.py
"""

import csv
import json

import pytest
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin

from medcap.evaluation.result import EvaluationResult
from medcap.metrics.coco import METRICS
from medcap.phantom.dataset import LICENSE, write_phantom
from medcap.publish.card import render_card
from medcap.publish.card_data import CardData
from medcap.publish.examples import FILES, INDEX, allows_redistribution, check_example, read_examples, write_examples

LICENCES = {
    "CC BY [Smith et al. (2020)]": True,
    "CC BY-SA 4.0": True,
    "CC0": True,
    LICENSE: True,
    "CC BY-NC [Smith et al. (2020)]": False,
    "CC BY-ND": False,
    "all rights reserved, CC BY": False,
    "Apache-2.0": False,
    "": False,
}


@pytest.mark.parametrize(("attribution", "allowed"), LICENCES.items(), ids=list(LICENCES))
def test_only_licences_of_adapted_copies_allow_redistribution(attribution, allowed):
    assert allows_redistribution(attribution) is allowed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Phantoms, of which every second test image has another licence."""
    folder = tmp_path_factory.mktemp("examples") / "data"
    write_phantom(folder, train=1, valid=1, test=16, seed=0)
    rows = [
        [
            f"PHANTOM_test_{number:06d}",
            "",
            "CC BY [A <b> (2020)]" if number % 2 else "CC BY-NC",
            f"https://x.org/{number}",
        ]
        for number in range(1, 17)
    ]
    with (folder / "license_information.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ID", "PMCID", "Attribution", "Link"], *rows])
    return folder


@pytest.fixture
def release(data, tmp_path):
    ids = [f"PHANTOM_test_{number:06d}" for number in range(1, 17)]
    (tmp_path / "predictions.csv").write_text("ID,Caption\n" + "".join(f"{name},a {name}\n" for name in ids))
    folder = tmp_path / "release"
    folder.mkdir()
    write_examples(folder, str(data), "test", tmp_path / "predictions.csv")
    return folder


def test_examples_are_evenly_spaced_over_the_redistributable_images(release):
    examples = read_examples(release)
    assert [example.image_id[-2:] for example in examples] == ["01", "03", "07", "09", "13", "15"]
    assert [example.file for example in examples] == list(FILES)
    assert examples[1].caption == "a PHANTOM_test_000003"
    assert examples[1].link == "https://x.org/3"
    for example in examples:
        check_example(release / example.file)
        with Image.open(release / example.file) as image:
            assert max(image.size) <= 256


def test_data_without_licences_gives_no_example(data, tmp_path):
    (tmp_path / "predictions.csv").write_text("ID,Caption\nPHANTOM_test_000001,x\n")
    write_examples(tmp_path, str(tmp_path / "none"), "test", tmp_path / "predictions.csv")
    (tmp_path / "predictions.csv").write_text("ID,Caption\nPHANTOM_test_000002,x\n")
    write_examples(tmp_path, str(data), "test", tmp_path / "predictions.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def other_pixels(release):
    Image.new("RGB", (9, 9)).save(release / FILES[0])


def metadata(release):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "a patient")
    with Image.open(release / FILES[0]) as image:
        image.save(release / FILES[0], pnginfo=info)


def another_licence(release):
    entries = json.loads((release / INDEX).read_text())
    entries[0]["attribution"] = "CC BY-NC"
    (release / INDEX).write_text(json.dumps(entries))


def not_listed(release):
    (release / INDEX).write_text("[]")


CHANGES = {
    other_pixels: "differs from examples.json",
    metadata: "differs from examples.json",
    another_licence: "does not allow redistribution",
    not_listed: "is not listed",
}


@pytest.mark.parametrize(("change", "message"), CHANGES.items(), ids=[change.__name__ for change in CHANGES])
def test_changed_example_is_refused(release, change, message):
    change(release)
    with pytest.raises(ValueError, match=message):
        check_example(release / FILES[0])


def test_card_shows_examples_with_their_source(release):
    scores = {"n": 16, "metrics": dict.fromkeys(METRICS, 0.5)}
    evaluation = EvaluationResult(name="mine", split="test", **scores)
    examples = read_examples(release)
    card = render_card(CardData("base", True, "blip", {"data_dir": "data"}, evaluation=evaluation, examples=examples))
    assert f"![PHANTOM_test_000003]({FILES[1]})" in card
    assert "- PHANTOM_test_000003: CC BY &#91;A &#60;b&#62; (2020)&#93;, https&#58;//x.org/3\n" in card
    assert "\n\n## Factual errors" in card
    assert ModelCard(card).data.license == "other"
