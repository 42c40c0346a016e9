"""The plots of a release are drawn from its numbers; any other image is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medcap.evaluation.result import EvaluationResult, SystemScores
from medcap.metrics.coco import METRICS
from medcap.publish.card_data import CardData
from medcap.publish.plots import check_plot, write_plots
from medcap.reporting.plots import read_curve

CURVE = [{"epoch": 1.0, "eval_loss": 0.9, "eval_cider": 0.4}, {"epoch": 2.0, "eval_loss": 0.8, "eval_cider": 0.6}]
SCORES = {"n": 2, "metrics": dict.fromkeys(METRICS, 0.5), "intervals": dict.fromkeys(METRICS, (0.4, 0.6))}
CONSTANT = SystemScores(name="constant", **SCORES)
EVALUATION = EvaluationResult(name="$mine$ <b>", split="test", **SCORES, baselines={"constant": CONSTANT})
CARD_DATA = CardData("base", True, 64, {"data_dir": "data"}, curve=CURVE, evaluation=EVALUATION)


@pytest.fixture
def folder(tmp_path):
    assert write_plots(tmp_path, CARD_DATA) == ["curve.png", "scores.png"]
    return tmp_path


def check(path):
    check_plot(path, CURVE, CARD_DATA.systems)


@pytest.mark.parametrize("name", ["curve.png", "scores.png"])
def test_plot_is_reproducible(name, folder, tmp_path):
    check(folder / name)
    (tmp_path / "again").mkdir()
    write_plots(tmp_path / "again", CARD_DATA)
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_plot_has_no_metadata(folder):
    with Image.open(folder / "curve.png") as image:
        image.load()
        assert set(image.info) == {"dpi"}


def test_no_plot_is_drawn_without_numbers(tmp_path):
    evaluation = replace(EVALUATION, intervals={}, baselines={})
    data = CardData("base", True, 64, {"data_dir": "data"}, evaluation=evaluation)
    assert write_plots(tmp_path, data) == []
    assert list(tmp_path.iterdir()) == []


def replace_with_image(path):
    with Image.open(path) as plot:
        size = plot.size
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)).convert("RGBA").save(path)


def change_pixel(path):
    with Image.open(path) as plot:
        plot.load()
    plot.putpixel((5, 5), (0, 0, 0, 255))
    plot.save(path)


def add_tag(path):
    with Image.open(path) as plot:
        plot.load()
    tags = PngImagePlugin.PngInfo()
    tags.add_text("PatientName", "DOE^JANE")
    plot.save(path, pnginfo=tags)


def append_bytes(path):
    path.write_bytes(path.read_bytes() + b"PatientName")


def write_jpeg(path):
    path.write_bytes(b"\xff\xd8\xff\xe0 JFIF")


CHANGES = {
    "image of the data set": (replace_with_image, "differs from the plot that matplotlib .* draws"),
    "one changed pixel": (change_pixel, "differs from the plot that matplotlib .* draws"),
    "text chunk": (add_tag, "contains metadata"),
    "bytes after the end": (append_bytes, "is truncated or has bytes after the end"),
    "JPEG": (write_jpeg, "is not a PNG file"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_plot_raises(change, message, folder):
    change(folder / "curve.png")
    with pytest.raises(ValueError, match=message) as raised:
        check(folder / "curve.png")
    assert "\n" not in str(raised.value)
    assert "DOE" not in str(raised.value)


def test_plot_without_numbers_raises(folder):
    with pytest.raises(ValueError, match=r"curve\.png: the release has no numbers for this plot"):
        check_plot(folder / "curve.png", [], CARD_DATA.systems)


def test_read_curve(tmp_path):
    assert read_curve(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CURVE))
    assert read_curve(tmp_path / "metrics.jsonl") == CURVE
