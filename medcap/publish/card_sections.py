"""Tables and lists of the model card; each is empty if its content was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from medcap.evaluation.result import EvaluationResult, PartScores, SystemScores
from medcap.evaluation.verdict import differences_of, verdict
from medcap.markdown import cell, code, escape, measured_table, table
from medcap.phantom.truth import FACTS
from medcap.publish.card_data import CardData, SystemRow
from medcap.recipe import GROUPS, REQUIRED
from medcap.reporting.tables import TITLES, differences_text

SPLIT_COLUMNS = {
    "split": "split",
    "rows": "images used",
    "read": "captions read",
    "blank": "blank captions",
    "license": "by license",
    "outside_fraction": "outside the chosen fraction",
    "missing": "images missing",
    "undecodable": "images unreadable",
    "leaked_image": "images also in a later split",
    "leaked_group": "articles or patients also in a later split",
    "duplicate": "near-duplicate images",
    "fingerprint": "fingerprint",
}
CURVE_COLUMNS = {
    "epoch": "epoch",
    "step": "step",
    "loss": "training loss",
    "eval_loss": "validation loss",
    **{f"eval_{name}": title for name, title in TITLES.items()},
}
ENVIRONMENT_TITLES = {"base": "base weights (SHA-256)", "training_seconds": "training time (s)"}
MAIN_METRICS = {name: TITLES[name] for name in ("bleu_4", "meteor", "rouge_l", "cider")}
DEFAULTS = {field.name: field.default for group in GROUPS.values() for field in fields(group)}


def scores_table(systems: Sequence[SystemRow]) -> str:
    """Return one row per system and one column per metric, with 95% intervals where they were computed."""
    rows = [(_name(row), *_scores(row.scores, TITLES)) for row in systems if row.scores.metrics]
    return table(("", *TITLES.values()), rows) if rows else ""


def findings_table(systems: Sequence[SystemRow]) -> str:
    """Return the fraction of images whose caption states each fact of a phantom correctly."""
    rows = [
        (_name(row), *(f"{findings[fact]:.1%}" if fact in findings else "" for fact in FACTS))
        for row in systems
        if (findings := row.scores.findings)
    ]
    return table(("", *FACTS), rows) if rows else ""


def _scores(row: SystemScores | PartScores, metrics: Iterable[str]) -> list[str]:
    """Return the score and its interval for each metric; blank if not measured."""
    cells = {key: f"{score:.4f}" for key, score in row.metrics.items()}
    intervals = {key: f" ({low:.3f} to {high:.3f})" for key, (low, high) in row.intervals.items()}
    return [cells.get(key, "") + intervals.get(key, "") for key in metrics]


def _name(row: SystemRow) -> str:
    name = escape(row.scores.name)
    return f"**{name}** (this {row.kind})" if row.is_ours else name


def differences(card_data: CardData) -> list[str]:
    """Return a line per other system: the metrics in which this one is significantly above or below it."""
    name = next((row.scores.name for row in card_data.systems if row.is_ours), None)
    if card_data.comparison is None or name is None:
        return []
    lines = differences_of(name, card_data.comparison.tests)
    return differences_text(
        [replace(line, first=escape(name), second=escape(line.second)) for line in lines]
    ).splitlines()


def statements(card_data: CardData) -> list[str]:
    """Return what the scores show about baselines and image dependence (see `verdict`); bold unless it is good."""
    if card_data.evaluation is None:
        return []
    evaluation = replace(card_data.evaluation, facts=None)  # wrong sides are in the card's section of factual errors
    tests = card_data.comparison.tests if card_data.comparison else None
    lines = [(escape(line.text), line.judgement) for line in verdict(evaluation, tests)]
    return [text if judgement == "good" else f"**{text}**" for text, judgement in lines]


def breakdown_table(evaluation: EvaluationResult | None, kind: str) -> str:
    """Return the scores by `kind`: "modality" of the image or "length" of the reference."""
    parts = evaluation.breakdown.get(kind, []) if evaluation else []
    rows = [(escape(part.value), cell(part.n), *_scores(part, MAIN_METRICS)) for part in parts]
    return table((kind, "images", *MAIN_METRICS.values()), rows) if rows else ""


def splits_table(card_data: CardData) -> str:
    """Return the number of rows read, excluded and used in each split; a reason without rows has no column."""
    splits = dict((card_data.environment or {}).get("data", {}))
    evaluation = card_data.evaluation
    if evaluation and evaluation.data:
        fingerprint = evaluation.signature.get("data") if evaluation.signature else None
        splits.setdefault(evaluation.split, {**evaluation.data, "rows": evaluation.n, "fingerprint": fingerprint})
    rows = [{"split": name, **counts} for name, counts in splits.items()]
    always = ("split", "rows", "read", "fingerprint")
    keys = [key for key in SPLIT_COLUMNS if key in always or any(row.get(key) for row in rows)]
    return measured_table({key: SPLIT_COLUMNS[key] for key in keys}, rows)


def differing_default(key: str, value: Any) -> str:
    """Return medcap's default of a recipe's key as code; blank if it is `value` or there is none."""
    default = getattr(DEFAULTS.get(key), "value", DEFAULTS.get(key))  # of an enum
    if key in REQUIRED or key not in DEFAULTS or default == value or default is MISSING:
        return ""
    return code(default)


def curve_table(card_data: CardData) -> str:
    """Return a row per evaluation during training."""
    return measured_table(CURVE_COLUMNS, [{**line, "epoch": f"{line['epoch']:g}"} for line in card_data.curve])


def layers_table(card_data: CardData) -> str:
    """Return a row per kind of trained layer."""
    rows = [(code(kind), f"{number:,}", f"{size:,}") for kind, (number, size) in card_data.layers.items()]
    total = [f"{sum(column):,}" for column in zip(*card_data.layers.values(), strict=True)]
    return table(("layer", "layers", "trained parameters"), [*rows, ("total", *total)]) if rows else ""


def versions(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of environment.json by title, without the data sets."""
    values = {**environment, **environment.get("packages", {})}
    return {ENVIRONMENT_TITLES.get(key, key): values[key] for key in values if key not in ("data", "packages")}
