"""What people look at: tables, the training curve, a sheet of sample images."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from datasets import Dataset

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


def verdict_text(result: Mapping[str, Any]) -> str:
    """What to know before a table is believed: what is not above a baseline, whether the model looks, wrong sides."""
    lines = []
    for name, row in result["baselines"].items():
        mine, theirs = result["intervals"]["cider"], row["intervals"]["cider"]
        if mine[0] <= theirs[1]:
            how = "below" if mine[1] < theirs[0] else "not clearly above"
            lines.append(f"CIDEr is {how} {name}: {result['metrics']['cider']:.4f} and {row['metrics']['cider']:.4f}")
    wrong = result.get("wrong_pictures")
    if wrong and not wrong["looks"]:
        lines.append(
            "THE MODEL DOES NOT LOOK: on the wrong pictures CIDEr is "
            f"{wrong['metrics']['cider']:.4f}, on the right ones {result['metrics']['cider']:.4f}"
        )
    facts = result["facts"]
    if facts["one_side"]:
        lines.append(f"wrong side in {facts['wrong_side']:.1%} of the {facts['one_side']} captions that name one side")
    return "\n".join(lines)


def intervals_table(systems: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, with the 95 % interval behind each metric."""
    header, rows = _columns(systems)
    for system, row in zip(systems, rows, strict=True):
        for place, name in enumerate(METRICS, 1):
            low, high = system["intervals"][name]
            row[place] += f" ({low:.3f} to {high:.3f})"
    return _markdown(header, rows)


def differences_table(tests: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each two systems, a column per metric; what is not significant is said to be so."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for test in tests:
        mark = "" if test["significant"] else " (n.s.)"
        rows.setdefault((test["first"], test["second"]), {})[test["metric"]] = f"{test['difference']:+.4f}{mark}"
    cells = [[f"{first} minus {second}", *(row[name] for name in METRICS)] for (first, second), row in rows.items()]
    return _markdown(["", *(TITLES[name] for name in METRICS)], cells)


def differences_text(tests: Sequence[Mapping[str, Any]]) -> str:
    """A line for each two systems, for the terminal: in what they really differ, and in what not."""
    pairs: dict[tuple[str, str], dict[str, list[str]]] = {}
    for test in tests:
        how = "above" if test["difference"] > 0 else "below"
        kind = f"{how} in" if test["significant"] else "no real difference in"
        pairs.setdefault((test["first"], test["second"]), {}).setdefault(kind, []).append(TITLES[test["metric"]])
    return "\n".join(
        f"{first} against {second}: {'; '.join(f'{kind} {_named(names)}' for kind, names in sorted(found.items()))}"
        for (first, second), found in pairs.items()
    )


def _named(titles: Sequence[str]) -> str:
    return "all metrics" if len(titles) == len(METRICS) else ", ".join(titles)


def seeds_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean and standard deviation of each metric over runs that differ in the seed alone."""
    rows = [
        [
            f"{', '.join(row['systems'])} (seeds {', '.join(map(str, row['seeds']))})",
            *(f"{row['metrics'][name]['mean']:.4f} ± {row['metrics'][name]['std']:.4f}" for name in METRICS),
        ]
        for row in seeds
    ]
    return _markdown(["", *(TITLES[name] for name in METRICS)], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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
