"""Plots are drawn without pyplot and are reproducible.

pytest tests/reporting/test_report_plots.py
"""

import subprocess
import sys
from typing import Any

from datasets import Dataset
from PIL import Image

from medcap.data.selection import FEATURES
from medcap.reporting.plots import plot_curves, write_png, write_sample_sheet

CURVE: list[dict[str, Any]] = [
    {"epoch": 1.0, "eval_loss": 0.9, "eval_cider": None},
    {"epoch": 2.0, "eval_loss": 0.8, "eval_cider": 0.6},
]


def test_curves_of_several_runs_have_a_legend(tmp_path):
    figure = plot_curves({"first": CURVE, "second": CURVE[1:]})
    assert [len(line.get_xdata()) for axis in figure.axes for line in axis.lines] == [2, 1, 1, 1]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["first", "second"]
    assert plot_curves({"one": CURVE}).axes[0].get_legend() is None
    write_png(tmp_path / "curves.png", figure)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (990, 374)


def test_curves_without_measurements_are_not_plotted():
    assert plot_curves({"run": [{"epoch": 1.0}]}) is None


def test_sample_sheet_is_reproducible(tmp_path):
    columns = {name: [None] * 5 for name in FEATURES}
    columns |= {"image": [Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(5)]}
    rows = Dataset.from_dict(columns, features=FEATURES)
    for name in ("one.png", "two.png"):
        write_sample_sheet(tmp_path / name, rows, {"prediction": ["$a$ caption"] * 5})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_import_does_not_select_a_backend():
    program = "import sys; import medcap.reporting.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
