"""Scores as text and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medcap.evaluation.baselines import LEGEND
from medcap.evaluation.result import Comparison, EvaluationResult, PairedDifference, SeedPool, SystemScores
from medcap.evaluation.verdict import RULE, verdict
from medcap.io import write_text
from medcap.markdown import escape, table
from medcap.metrics.statistics import METRICS
from medcap.phantom.truth import FACTS
from medcap.reporting.columns import TITLES, aligned

_HEADER = ["", *(TITLES[name] for name in METRICS)]


def _cells(systems: Sequence[SystemScores], with_intervals: bool = False) -> list[list[str]]:
    """Return header and rows: the metrics, and the correct findings if they are known."""
    facts = FACTS if any(system.findings for system in systems) else ()
    rows = [[*_HEADER, *facts]]
    for system in systems:
        findings = system.findings or {}
        scores = [_score(system, name, with_intervals) for name in METRICS]
        rows.append([system.name, *scores, *(f"{findings[fact]:.0%}" if fact in findings else "" for fact in facts)])
    return rows


def _score(system: SystemScores, metric: str, with_interval: bool) -> str:
    low, high = system.intervals.get(metric, (0.0, 0.0))
    return f"{system.metrics[metric]:.4f}" + (f" ({low:.3f} to {high:.3f})" if with_interval else "")


def text_table(systems: Sequence[SystemScores]) -> str:
    """Return a table for the terminal with one line per system."""
    header, *lines = aligned(_cells(systems))
    return "\n".join([header, "-" * len(header), *lines])


def verdict_text(result: EvaluationResult) -> str:
    """Return the statements of `verdict` for the terminal, one line each."""
    return "\n".join(f"{statement.judgement:6}  {statement.text}" for statement in verdict(result))


def intervals_table(systems: Sequence[SystemScores]) -> str:
    """Return a Markdown table with the 95 % interval of each metric."""
    return _markdown(*_cells(systems, with_intervals=True))


def differences_table(tests: Sequence[PairedDifference]) -> str:
    """Return a Markdown table: a row per pair of systems, a column per metric; (n.s.) means not significant."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for test in tests:
        mark = "" if test.significant else " (n.s.)"
        rows.setdefault((test.first, test.second), {})[test.metric] = f"{test.difference:+.4f}{mark}"
    cells = [[f"{first} minus {second}", *(row[name] for name in METRICS)] for (first, second), row in rows.items()]
    return _markdown(_HEADER, *cells)


def differences_text(tests: Sequence[PairedDifference]) -> str:
    """Return a line per pair of systems: the metrics with and without a significant difference."""
    pairs: dict[tuple[str, str], dict[str, list[str]]] = {}
    for test in tests:
        direction = "above" if test.difference > 0 else "below"
        kind = f"{direction} in" if test.significant else "no significant difference in"
        pairs.setdefault((test.first, test.second), {}).setdefault(kind, []).append(TITLES[test.metric])
    return "\n".join(
        f"{first} against {second}: {'; '.join(f'{kind} {_listed(names)}' for kind, names in sorted(kinds.items()))}"
        for (first, second), kinds in pairs.items()
    )


def _listed(titles: Sequence[str]) -> str:
    return "all metrics" if len(titles) == len(METRICS) else ", ".join(titles)


def seeds_table(seeds: Sequence[SeedPool]) -> str:
    """Return a Markdown table: mean and standard deviation of each metric over the seeds of one recipe."""
    rows = [
        [
            f"{', '.join(row.systems)} (seeds {', '.join(map(str, row.seeds))})",
            *(f"{row.metrics[name]['mean']:.4f} ± {row.metrics[name]['std']:.4f}" for name in METRICS),
        ]
        for row in seeds
    ]
    return _markdown(_HEADER, *rows)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as Markdown."""
    parts = [
        intervals_table(comparison.systems),
        f"{comparison.systems[0].n} images. In parentheses: 95 % bootstrap intervals (1,000 resamples of images, or "
        "of articles or patients if the data names them).\n",
        legend_list(comparison.systems),
        "## Significant differences\n",
        differences_table(comparison.tests),
        "First system minus second. (n.s.): not significant, p >= .05 in a paired approximate-randomisation test with "
        "10,000 trials on the same images, articles or patients. The p values are not corrected for the number of "
        f"tests.\n\n{RULE}\n",
    ]
    if comparison.seeds:
        parts += ["## Several seeds of one recipe\n", seeds_table(comparison.seeds)]
    write_text(path, "\n".join(parts))


def legend_list(systems: Sequence[SystemScores]) -> str:
    """Return a Markdown list of what the baselines among the systems are, with the constant caption; "" for none."""
    lines = []
    for row in systems:
        if row.name in LEGEND:
            caption = f": “{escape(row.caption)}”" if row.caption else ""
            lines.append(f"- *{row.name}*: {LEGEND[row.name]}{caption}\n")
    return "".join(lines)


def _markdown(header: Sequence[str], *rows: Sequence[str]) -> str:
    return table(header, [list(map(escape, row)) for row in rows]) + "\n"
