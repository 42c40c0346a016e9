"""What people look at: tables, the training curve, a sheet of sample images, and one HTML page."""

from __future__ import annotations

import base64
import html
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from datasets import Dataset
from PIL import Image

from medcap.data.images import load_image
from medcap.evaluation.coco import METRICS
from medcap.evaluation.findings import FACTS

matplotlib.use("Agg")

from matplotlib import pyplot as plt

TITLES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}


def _columns(systems: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the metrics, and the facts where they are known."""
    facts = FACTS if any(system.get("findings") for system in systems) else ()
    header = ["", *(TITLES[name] for name in METRICS), *facts]
    rows = [
        [
            system["name"],
            *(f"{system['metrics'][name]:.4f}" for name in METRICS),
            *(f"{system['findings'][fact]:.0%}" if fact in system.get("findings", {}) else "" for fact in facts),
        ]
        for system in systems
    ]
    return header, rows


def text_table(systems: Sequence[Mapping[str, Any]]) -> str:
    """A table for the terminal: one line per system, numbers right-aligned."""
    header, rows = _columns(systems)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(systems: Sequence[Mapping[str, Any]]) -> str:
    """The same as Markdown."""
    header, rows = _columns(systems)
    cells = [
        [cell.replace("|", "\\|") for cell in row] for row in [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


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


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b2330 }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap }
th:first-child, td:first-child { text-align: left; font-weight: 600 }
.signature { color: #5b6675; font: 12px ui-monospace, monospace; overflow-wrap: anywhere }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem }
figure { margin: 0; background: #f5f7fa; border-radius: 8px; overflow: hidden }
figure img { width: 100%; height: 15rem; object-fit: contain; background: #000; display: block }
figcaption { padding: .6rem .8rem; font-size: 13px }
figcaption p { margin: .2rem 0 }
.id { color: #5b6675; font-size: 11px }
.reference::before { content: "reference "; color: #5b6675 }
.prediction::before { content: "prediction "; color: #0a6b4b }
"""


def write_html(path: Path, result: Mapping[str, Any], rows: Dataset, captions: Sequence[str], count: int = 24) -> None:
    """Write one self-contained page: the table with its baselines, how varied the captions are, sample images."""
    systems = [result, *({"name": name, **row} for name, row in result["baselines"].items())]
    header, cells = _columns(systems)
    described = result["captions"]
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(result["name"])}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{html.escape(result["name"])}</h1>
<p>{result["n"]} images of the {html.escape(result["split"])} split, captioned by {html.escape(str(result["model"]))}.
Not a medical device.</p>
<table><tr>{"".join(f"<th>{html.escape(cell)}</th>" for cell in header)}</tr>
{"".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)}</table>
<p class="signature">{html.escape(result["signature"])}</p>
<h2>How varied the captions are</h2>
<p>{described["distinct"]} different captions for {result["n"]} images, {described["mean_words"]:.1f} words on average;
{described["cut_share"]:.1%} were cut by the limit of tokens. The most frequent one is said of
{described["most_frequent_share"]:.1%} of the images: &ldquo;{html.escape(described["most_frequent"])}&rdquo;</p>
<h2>Samples</h2><div class="samples">
{"".join(_figure(rows[row], captions[row]) for row in _spread(len(rows), count))}</div></html>
"""
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _figure(row: Mapping[str, Any], caption: str) -> str:
    return (
        f'<figure><img alt="" src="{_data_url(load_image(row["image"]))}"><figcaption>'
        f'<p class="reference">{html.escape(row["caption"])}</p><p class="prediction">{html.escape(caption)}</p>'
        f'<p class="id">{html.escape(row["image_id"])}</p></figcaption></figure>\n'
    )


def _data_url(image: Image.Image) -> str:
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
