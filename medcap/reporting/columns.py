"""Names of metrics, and columns of text for the terminal; imports no library that takes long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medcap.logs import visible

TITLES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a text table; all columns but the first are right-aligned."""
    rows = [[visible(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def scores_text(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> str:
    """Return a line for each metric: score and 95 % interval."""
    rows = [["", "score", "95 % interval"]]
    for name, score in metrics.items():
        low, high = intervals[name]
        rows.append([TITLES[name], f"{score:.4f}", f"{low:.4f} to {high:.4f}"])
    return "\n".join(aligned(rows))
