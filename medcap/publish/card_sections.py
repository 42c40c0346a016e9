"""Tables and lists of the model card; each is empty if its content was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from medcap.evaluation.result import EvaluationResult, PairedDifference, PartScores, SystemScores
from medcap.metrics.clinical.accuracy import LATERALITIES
from medcap.phantom.truth import FACTS
from medcap.publish.card_data import CardData, SystemRow
from medcap.publish.markdown import cell, code, escape, measured_table, table
from medcap.recipe import GROUPS, REQUIRED
from medcap.reporting.tables import TITLES, differences_text

SPLIT_COLUMNS = {
    "split": "split",
    "rows": "images used",
    "read": "captions read",
    "blank": "blank captions",
    "license": "by licence",
    "outside_fraction": "outside the chosen fraction",
    "missing": "images missing",
    "undecodable": "images unreadable",
    "leaked_image": "images of a later split",
    "leaked_group": "articles or patients of a later split",
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
MAIN_METRICS = {name: TITLES[name] for name in ("bleu_4", "meteor", "rouge_l", "cider")}
FACT_COLUMNS = {
    "precision": "precision", "recall": "recall", "f1": "F1", "predicted": "in the captions",
    "reference": "in the references",
}  # fmt: skip
DEFAULTS = {field.name: field.default for group in GROUPS.values() for field in fields(group)}


def scores_table(systems: Sequence[SystemRow]) -> str:
    """Return one row per system and one column per metric, with 95 % intervals where they were computed."""
    rows = [(_name(row), *_scores(row.scores, TITLES)) for row in systems if row.scores.metrics]
    return table(("", *TITLES.values()), rows) if rows else ""


def findings_table(systems: Sequence[SystemRow]) -> str:
    """Return the fraction of images whose caption states each fact of a phantom correctly."""
    rows = [(_name(row), *_percentages(row.scores.findings)) for row in systems if row.scores.findings]
    return table(("", *FACTS), rows) if rows else ""


def _scores(row: SystemScores | PartScores, metrics: Iterable[str]) -> list[str]:
    """Return the score and its interval for each metric; blank if not measured."""
    cells = {key: f"{score:.4f}" for key, score in row.metrics.items()}
    intervals = {key: f" ({low:.3f} to {high:.3f})" for key, (low, high) in row.intervals.items()}
    return [cells.get(key, "") + intervals.get(key, "") for key in metrics]


def _percentages(findings: Mapping[str, float]) -> list[str]:
    return [f"{findings[fact]:.1%}" if fact in findings else "" for fact in FACTS]


def _name(row: SystemRow) -> str:
    name = escape(row.scores.name)
    return f"**{name}** (this adapter)" if row.is_ours else name


def differences(card_data: CardData) -> list[str]:
    """Return a line per other system: the metrics in which this one is significantly above or below it."""
    name = next((row.scores.name for row in card_data.systems if row.is_ours), None)
    if card_data.comparison is None or name is None:
        return []
    tests = card_data.comparison.tests
    reversed_tests = [_reversed(test) for test in tests if test.second == name]
    own_tests = [*reversed_tests, *(test for test in tests if test.first == name)]
    escaped = [replace(test, first=escape(test.first), second=escape(test.second)) for test in own_tests]
    return differences_text(escaped).splitlines()


def _reversed(test: PairedDifference) -> PairedDifference:
    return replace(
        test, first=test.second, second=test.first, difference=-test.difference, low=-test.high, high=-test.low
    )


def breakdown_table(evaluation: EvaluationResult | None, kind: str) -> str:
    """Return the scores by `kind`: "modality" of the image or "length" of the reference."""
    parts = evaluation.breakdown.get(kind, []) if evaluation else []
    rows = [(escape(part.value), cell(part.n), *_scores(part, MAIN_METRICS)) for part in parts]
    return table((kind, "images", *MAIN_METRICS.values()), rows) if rows else ""


def facts_table(evaluation: EvaluationResult | None) -> str:
    """Return precision and recall of the extracted facts by kind."""
    if evaluation is None or evaluation.facts is None:
        return ""
    kinds = evaluation.facts.kinds.items()
    rows = [{"kind": kind, **asdict(scores)} for kind, scores in kinds if scores.predicted or scores.reference]
    return measured_table({"kind": "", **FACT_COLUMNS}, rows)


def laterality_table(evaluation: EvaluationResult | None) -> str:
    """Return the confusion matrix of sides: references in rows, captions in columns."""
    sides = evaluation.facts.sides if evaluation and evaluation.facts else {}
    rows = [
        (f"reference: {row}", *(cell(sides[row][column]) for column in LATERALITIES))
        for row in LATERALITIES
        if row in sides
    ]
    return table(("", *(f"caption: {side}" for side in LATERALITIES)), rows) if rows else ""


def splits_table(card_data: CardData) -> str:
    """Return the numbers of rows read, left out and used per split; a reason without rows has no column."""
    splits = dict((card_data.environment or {}).get("data", {}))
    evaluation = card_data.evaluation
    if evaluation and evaluation.data:
        fingerprint = evaluation.signature.get("data") if evaluation.signature else None
        splits.setdefault(evaluation.split, {**evaluation.data, "rows": evaluation.n, "fingerprint": fingerprint})
    rows = [{"split": name, **counts} for name, counts in splits.items()]
    always = ("split", "rows", "read", "fingerprint")
    shown = [key for key in SPLIT_COLUMNS if key in always or any(row.get(key) for row in rows)]
    return measured_table({key: SPLIT_COLUMNS[key] for key in shown}, rows)


def recipe_table(recipe: Mapping[str, Any]) -> str:
    """Return every key and value, and medcap's default where it differs."""
    rows = [(code(key), code(value), _differing_default(key, value)) for key, value in recipe.items()]
    return table(("key", "value", "medcap's default, if different"), rows, "---")


def _differing_default(key: str, value: Any) -> str:
    if key in REQUIRED or key not in DEFAULTS:
        return ""
    default = getattr(DEFAULTS[key], "value", DEFAULTS[key])
    if not isinstance(default, (str, int, float, bool, type(None))):  # a default factory
        return ""
    return "" if default == value else code(default)


def curve_table(card_data: CardData) -> str:
    """Return a row per evaluation during training."""
    return measured_table(CURVE_COLUMNS, [{**line, "epoch": f"{line['epoch']:g}"} for line in card_data.curve])


def selection_metric(recipe: Mapping[str, Any]) -> str | None:
    """Return the validation metric that selected the released epoch; None if it is the last epoch."""
    if not recipe.get("load_best_model_at_end", DEFAULTS["load_best_model_at_end"]):
        return None
    return str(recipe.get("metric_for_best_model", DEFAULTS["metric_for_best_model"]))


def versions_table(environment: Mapping[str, Any]) -> str:
    """Return the content of environment.json except the data."""
    single = {key: value for key, value in environment.items() if key not in ("data", "packages")}
    known = {**single, **environment.get("packages", {})}
    rows = [(escape(key), escape(value)) for key, value in known.items() if value is not None]
    return table(("", "value"), rows, "---") if rows else ""


def not_above(evaluation: EvaluationResult, baseline: SystemScores) -> list[str]:
    """Return the metrics in which an evaluation is not above a baseline."""
    ours, floor = evaluation.metrics, baseline.metrics
    return [title for key, title in TITLES.items() if key in floor and ours.get(key, 0) <= floor[key]]
