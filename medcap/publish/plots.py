"""The plots of a release, reproducible from its numbers, so that no image of the data set is published as a plot."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import __version__ as matplotlib_version
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from medcap.publish.card_data import CardData, SystemRow
from medcap.reporting.plots import plot_curves, side_by_side, write_png
from medcap.reporting.tables import TITLES

SHOWN = ("bleu_4", "meteor", "rouge_l", "cider")
CHUNKS = {b"IHDR", b"pHYs", b"IDAT", b"IEND"}  # of a PNG: no text, no EXIF, no profile
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_plots(folder: Path, card_data: CardData) -> list[str]:
    """Draw curve.png and scores.png into `folder`, if their numbers were measured; return the names."""
    figures = _figures(card_data.curve, card_data.systems)
    for name, figure in figures.items():
        write_png(folder / name, figure)
    return list(figures)


def check_plot(path: Path, curve: Sequence[Mapping[str, Any]], systems: Sequence[SystemRow]) -> None:
    """Raise ValueError unless `path` is, pixel for pixel, the plot of these numbers and contains no metadata."""
    if png_chunks(path) - CHUNKS:
        raise ValueError(f"{path.name} contains metadata; remove it and build the release again")
    figure = _figures(curve, systems).get(path.name)
    if figure is None:
        raise ValueError(f"{path.name}: the release has no numbers for this plot; remove it")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    expected = np.asarray(canvas.buffer_rgba())
    with Image.open(path, formats=["PNG"]) as image:
        actual = np.asarray(image.convert("RGBA"))
    if actual.shape != expected.shape or (actual != expected).any():
        raise ValueError(
            f"{path.name} differs from the plot that matplotlib {matplotlib_version} draws of this release's numbers; "
            "build the release again"
        )


def _figures(curve: Sequence[Mapping[str, Any]], systems: Sequence[SystemRow]) -> dict[str, Figure]:
    figures = {"curve.png": plot_curves({"": curve}), "scores.png": _plot_scores(systems)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _plot_scores(systems: Sequence[SystemRow]) -> Figure | None:
    """Plot each score as a dot and its interval as a bar; None without intervals."""
    known = [row for row in systems if row.scores.intervals][::-1]  # the y axis starts at the bottom
    measured = [key for key in SHOWN if known and all(key in row.scores.intervals for row in known)]
    if not measured:
        return None

    def draw(axis: Axes, key: str) -> None:
        for y, row in enumerate(known):
            color = "C1" if row.is_ours else "C0"
            axis.plot(row.scores.intervals[key], [y, y], color=color)
            axis.plot([row.scores.metrics[key]], [y], marker="o", color=color)
        labels = [row.scores.name if key == measured[0] else "" for row in known]
        axis.set_yticks(range(len(known)), labels=labels, parse_math=False)
        axis.set(title=TITLES[key], ylim=(-0.5, len(known) - 0.5))

    return side_by_side(measured, draw, 1 + 0.35 * len(known))


def png_chunks(path: Path) -> set[bytes]:
    """Return the chunk types of a PNG; raise ValueError for another format or bytes after the end."""
    data, kinds, at = path.read_bytes(), set[bytes](), len(_SIGNATURE)
    if not data.startswith(_SIGNATURE):
        raise ValueError(f"{path.name} is not a PNG file")
    while b"IEND" not in kinds and at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        kinds.add(kind)
        at += 12 + length
    if at != len(data) or b"IEND" not in kinds:
        raise ValueError(
            f"{path.name} is truncated or has bytes after the end of the PNG; remove it and build the release again"
        )
    return kinds
