"""The results of a hyper-parameter search: table, plots, and one self-contained page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medcap.io import write_csv, write_text
from medcap.reporting.pages import data_url, render
from medcap.reporting.plots import DPI, write_png

STATES = ("complete", "pruned", "failed")
MARKERS = {"complete": "C0o", "pruned": "C7x"}


@dataclass(frozen=True)
class TrialRow:
    """One finished trial: `value` is its metric, of a pruned one that of its last epoch; `note` explains failures."""

    number: int
    state: str
    value: float | None
    epochs: int
    params: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class SearchResult:
    """The finished trials of a search.

    Attributes:
        recipe: Path of the recipe.
        metric: Validation metric that the trials are compared by.
        greater_is_better: Its direction.
        space: Searched values by key, as text.
        before: Values of the recipe.
        rows: Trials by number.
        best: The best complete trial.
        own: The trial with the recipe's own values, if there is one.
        importance: Importance by key, with a sum of 1; empty for too few trials.
    """

    recipe: str
    metric: str
    greater_is_better: bool
    space: Mapping[str, str]
    before: Mapping[str, Any]
    rows: Sequence[TrialRow]
    best: TrialRow
    own: TrialRow | None
    importance: Mapping[str, float]


def write_results(out: Path, result: SearchResult) -> None:
    """Write trials.csv, history.png, importance.png (if known) and report.html."""
    header = ["trial", "state", result.metric, "epochs", *result.space, "note"]
    write_csv(
        out / "trials.csv",
        header,
        [
            [row.number, row.state, row.value, row.epochs, *(row.params[key] for key in result.space), row.note]
            for row in result.rows
        ],
    )
    figures = {"history.png": plot_history(result)}
    if result.importance:
        figures["importance.png"] = plot_importance(result.importance)
    for name, figure in figures.items():
        write_png(out / name, figure)
    plots = {name: data_url((out / name).read_bytes(), "png") for name in figures}
    counts = dict.fromkeys(STATES, 0) | Counter(row.state for row in result.rows)
    write_text(out / "report.html", render("tuning_page.html", **vars(result), counts=counts, plots=plots))


def plot_history(result: SearchResult) -> Figure:
    """Plot the value of each trial in order, and the best value so far."""
    figure = Figure(figsize=(9, 3.4), dpi=DPI, layout="tight")
    axis = figure.subplots()
    for state in MARKERS:
        points = [(row.number, row.value) for row in result.rows if row.state == state and row.value is not None]
        axis.plot([number for number, _ in points], [value for _, value in points], MARKERS[state], label=state)
    complete = [row for row in result.rows if row.state == "complete"]
    choose = max if result.greater_is_better else min
    values = [row.value for row in complete if row.value is not None]
    best = [choose(values[: count + 1]) for count in range(len(values))]
    axis.step([row.number for row in complete], best, where="post", color="C1", label="best so far")
    axis.set(xlabel="trial", ylabel=f"validation {result.metric}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def plot_importance(importance: Mapping[str, float]) -> Figure:
    """Plot the importance of each key as a bar, the largest at the top."""
    keys = sorted(importance, key=lambda key: importance[key])
    figure = Figure(figsize=(9, 1 + 0.35 * len(keys)), dpi=DPI, layout="tight")
    axis = figure.subplots()
    axis.barh(range(len(keys)), [importance[key] for key in keys])
    axis.set_yticks(range(len(keys)), labels=keys, parse_math=False)
    axis.set(xlabel="importance (sum 1)")
    axis.grid(alpha=0.3)
    return figure
