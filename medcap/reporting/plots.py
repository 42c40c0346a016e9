"""Plots as PNG files, drawn without pyplot, which has global state and selects a backend."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medcap.data.augmentation import Augmentation
from medcap.data.images import image_digest, load_image
from medcap.io import atomic_path
from medcap.reporting.tables import TITLES

CURVES = {"eval_loss": "validation loss", "eval_cider": "validation CIDEr"}
DPI = 110
MARKED = 30  # points of a curve; those of a longer one are not marked


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure without metadata, so that equal figures are equal files."""
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(part, metadata={"Software": None})


def write_sample_sheet(path: Path, rows: Dataset, columns: Mapping[str, Sequence[str]], count: int = 12) -> None:
    """Write a PNG of `count` images, evenly spread over `rows`, each above its captions in `columns`."""
    count = min(count, len(rows))
    chosen = [round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)]
    across = min(4, count)
    down = -(-count // across)
    figure = Figure(figsize=(3.4 * across, (3.2 + 0.36 * len(columns)) * down), dpi=DPI)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, chosen, strict=False):
        axis.imshow(load_image(rows[row]["image"]))
        text = "\n".join(_label(title, captions[row]) for title, captions in columns.items())
        axis.text(0, -0.03, text, transform=axis.transAxes, va="top", fontsize=7.5, parse_math=False)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.98, bottom=0.13, wspace=0.08, hspace=0.12 * len(columns))
    write_png(path, figure)


def write_augmentation_sheet(path: Path, rows: Dataset, augmentation: Augmentation, count: int = 4) -> None:
    """Write a PNG of `count` images, evenly spread over `rows`: each a row of the image and its next views."""
    chosen = sorted({round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)})
    across = min(augmentation.views or 6, 6)
    figure = Figure(figsize=(2.4 * across, 2.5 * len(chosen)), dpi=DPI, layout="tight")
    for axes, row in zip(figure.subplots(len(chosen), across, squeeze=False), chosen, strict=True):
        entry = rows[row]["image"]
        image, digest = load_image(entry), image_digest(entry)
        for number, axis in enumerate(axes):
            axis.imshow(augmentation(image, augmentation.numbered_view(digest, number)))
            axis.set_title(f"view {number}" if number else "unchanged", fontsize=8)
            axis.axis("off")
    write_png(path, figure)


def _label(title: str, caption: str) -> str:
    return textwrap.fill(f"{title}: {caption}", width=54, max_lines=3, placeholder=" ...")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; empty if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Plot loss and CIDEr by epoch, from the lines of metrics.jsonl by run; None if neither was measured."""
    measured = [key for key in CURVES if any(line.get(key) is not None for curve in runs.values() for line in curve)]

    def draw(axis: Axes, key: str) -> None:
        for name, curve in runs.items():
            lines = [line for line in curve if line.get(key) is not None]
            axis.plot([line["epoch"] for line in lines], [line[key] for line in lines], marker="o", label=name)
        axis.set(title=CURVES[key], xlabel="epoch")
        if len(runs) > 1:
            axis.legend()

    return side_by_side(measured, draw, 3.4) if measured else None


def plot_training(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Plot the losses, the metrics between 0 and 1, and CIDEr by epoch; None without any of them.

    Args:
        log: Lines of the Trainer's log, or of metrics.jsonl.
    """
    plots = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "validation metrics": {f"eval_{name}": title for name, title in TITLES.items() if name != "cider"},
        "validation CIDEr": {"eval_cider": "CIDEr"},
    }
    measured = [
        title for title, keys in plots.items() if any(line.get(key) is not None for line in log for key in keys)
    ]

    def draw(axis: Axes, title: str) -> None:
        for marker, (key, label) in zip("osv^Dx", plots[title].items(), strict=False):
            points = {line["epoch"]: line[key] for line in log if line.get(key) is not None}
            if points:
                few = marker if len(points) <= MARKED else ""
                axis.plot(list(points), list(points.values()), marker=few, label=label)
        axis.set(title=title, xlabel="epoch")
        axis.legend(fontsize=8)

    return side_by_side(measured, draw, 3.6) if measured else None


def side_by_side(keys: Sequence[str], draw: Callable[[Axes, str], None], height: float) -> Figure:
    """Return a figure with one plot per key, drawn by `draw`; `height` is in inches."""
    figure = Figure(figsize=(max(9, 3 * len(keys)), height), dpi=DPI, layout="tight")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        draw(axis, key)
        axis.grid(alpha=0.3)
    return figure
