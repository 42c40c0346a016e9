"""Tables of scores as text and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medcap.metrics.coco import METRICS
from medcap.phantom.truth import FACTS

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
