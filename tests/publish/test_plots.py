"""A plot of a release is drawn from its numbers, and nothing else can go out under its name.

pytest tests/publish/test_plots.py
"""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medcap.metrics.coco import METRICS
from medcap.publish.card_data import CardData
from medcap.publish.plots import check_plot, read_curve, write_plots

CURVE = [{"epoch": 1.0, "eval_loss": 0.9, "eval_cider": 0.4}, {"epoch": 2.0, "eval_loss": 0.8, "eval_cider": 0.6}]
ROW = {"metrics": dict.fromkeys(METRICS, 0.5), "intervals": {name: [0.4, 0.6] for name in METRICS}}
EVALUATION = {"name": "$mine$ <b>", **ROW, "baselines": {"constant": ROW}}
FACTS = CardData("base", True, 64, {"data_dir": "data"}, curve=CURVE, evaluation=EVALUATION)


@pytest.fixture
def folder(tmp_path):
    assert write_plots(tmp_path, FACTS) == ["curve.png", "scores.png"]
    return tmp_path


def check(path):
    check_plot(path, CURVE, FACTS.systems)


@pytest.mark.parametrize("name", ["curve.png", "scores.png"])
def test_a_plot_passes_and_the_same_numbers_give_the_same_bytes(name, folder, tmp_path):
    check(folder / name)
    (tmp_path / "again").mkdir()
    write_plots(tmp_path / "again", FACTS)
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_plot_says_nothing_of_the_machine_or_the_time(folder):
    with Image.open(folder / "curve.png") as image:
        image.load()
        assert set(image.info) == {"dpi"}


def test_without_numbers_there_is_no_plot(tmp_path):
    bare = CardData(
        "base", True, 64, {"data_dir": "data"}, evaluation={**EVALUATION, "intervals": {}, "baselines": {}}
    )
    assert write_plots(tmp_path, bare) == []
    assert list(tmp_path.iterdir()) == []


def a_picture_of_the_data(path):
    with Image.open(path) as plot:
        size = plot.size
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)).convert("RGBA").save(path)


def one_pixel(path):
    with Image.open(path) as plot:
        plot.load()
    plot.putpixel((5, 5), (0, 0, 0, 255))
    plot.save(path)


def a_tag(path):
    with Image.open(path) as plot:
        plot.load()
    tags = PngImagePlugin.PngInfo()
    tags.add_text("PatientName", "DOE^JANE")
    plot.save(path, pnginfo=tags)


def another_file_behind(path):
    path.write_bytes(path.read_bytes() + b"PatientName")


def no_png(path):
    path.write_bytes(b"\xff\xd8\xff\xe0 JFIF")


SPOILT = {
    "a picture of the data": (a_picture_of_the_data, "is not what matplotlib .* draws of this release's numbers"),
    "one pixel": (one_pixel, "is not what matplotlib .* draws of this release's numbers"),
    "a tag": (a_tag, "holds more than pixels"),
    "another file behind it": (another_file_behind, "is cut or holds more than a PNG"),
    "no PNG": (no_png, "it is no PNG"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_what_is_no_plot_of_the_numbers_is_refused_in_one_line(spoil, message, folder):
    spoil(folder / "curve.png")
    with pytest.raises(ValueError, match=message) as raised:
        check(folder / "curve.png")
    assert "\n" not in str(raised.value)
    assert "DOE" not in str(raised.value)


def test_a_plot_of_no_numbers_is_refused(folder):
    with pytest.raises(ValueError, match=r"curve\.png: the release has no numbers that it could show"):
        check_plot(folder / "curve.png", [], FACTS.systems)


def test_a_curve_is_read_line_by_line(tmp_path):
    assert read_curve(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CURVE))
    assert read_curve(tmp_path / "metrics.jsonl") == CURVE
