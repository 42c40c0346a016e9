"""Plots: training curves, and a contact sheet of sample images with their captions."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from datasets import Dataset

from medcap.data.images import load_image

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def write_sample_sheet(path: Path, rows: Dataset, columns: Mapping[str, Sequence[str]], count: int = 12) -> None:
    """Draw `count` images, evenly spread over `rows`, with what each of `columns` says of them underneath (PNG)."""
    chosen = _spread(len(rows), count)
    across = min(4, len(chosen))
    down = -(-len(chosen) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.4 * across, (3.2 + 0.36 * len(columns)) * down), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, chosen, strict=False):
        axis.imshow(load_image(rows[row]["image"]))
        said = [_label(title, captions[row]) for title, captions in columns.items()]
        axis.text(0, -0.03, "\n".join(said), transform=axis.transAxes, va="top", fontsize=7.5, parse_math=False)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.98, bottom=0.13, wspace=0.08, hspace=0.12 * len(columns))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(title: str, caption: str) -> str:
    return textwrap.fill(f"{title}: {caption}", width=54, max_lines=3, placeholder=" ...")


def _spread(length: int, count: int) -> list[int]:
    count = min(count, length)
    return [round(i * (length - 1) / max(count - 1, 1)) for i in range(count)]


def write_curves(path: Path, runs: Mapping[str, Path]) -> None:
    """Plot validation loss and CIDEr per epoch of several runs from their metrics.jsonl (PNG)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, run in runs.items():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        epochs = [line["epoch"] for line in lines]
        left.plot(epochs, [line["eval_loss"] for line in lines], marker="o", label=name)
        right.plot(epochs, [line["eval_cider"] for line in lines], marker="o", label=name)
    for axis, title in ((left, "validation loss"), (right, "validation CIDEr")):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
