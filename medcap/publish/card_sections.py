"""The tables and lists of the card, each made of measured facts; "" or empty where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from medcap.metrics.clinical.accuracy import LATERALITIES
from medcap.phantom.truth import FACTS
from medcap.publish.card_data import CardData
from medcap.publish.markdown import cell, code, escape, measured_table, table
from medcap.recipe import (
    REQUIRED,
    CaptionTrainingArguments,
    DataArguments,
    GenerationArguments,
    LoraArguments,
    ModelArguments,
)
from medcap.reporting.tables import TITLES, differences_text

SPLIT_COLUMNS = {
    "split": "split",
    "rows": "images used",
    "read": "captions read",
    "blank": "blank captions",
    "license": "by licence",
    "outside_fraction": "outside of the chosen fraction",
    "missing": "images missing",
    "undecodable": "images broken",
    "leaked_image": "pictures of a later split",
    "leaked_group": "articles or patients of a later split",
    "duplicate": "repeated pictures",
    "fingerprint": "fingerprint",
}
CURVE_COLUMNS = {
    "epoch": "epoch",
    "step": "step",
    "loss": "training loss",
    "eval_loss": "validation loss",
    **{f"eval_{name}": title for name, title in TITLES.items()},
}
FEW = {name: TITLES[name] for name in ("bleu_4", "meteor", "rouge_l", "cider")}  # of a part of the images
COUNTED = {"precision": "precision", "recall": "recall", "f1": "F1", "said": "said", "true": "in the references"}
_ARGUMENTS = (DataArguments, ModelArguments, LoraArguments, GenerationArguments, CaptionTrainingArguments)
DEFAULTS = {field.name: field.default for kind in _ARGUMENTS for field in fields(kind)}


def scores_table(systems: Sequence[Mapping[str, Any]]) -> str:
    """One row per system, one column per metric, with its 95 % interval where there is one."""
    return _rows_table(systems, "metrics", TITLES)


def findings_table(systems: Sequence[Mapping[str, Any]]) -> str:
    """The share of images whose caption names each fact of a phantom rightly, for the systems where it is known."""
    return _rows_table(systems, "findings", dict(zip(FACTS, FACTS, strict=True)), "{:.1%}")


def _rows_table(
    systems: Sequence[Mapping[str, Any]], part: str, titles: Mapping[str, str], form: str = "{:.4f}"
) -> str:
    known = [row for row in systems if row.get(part)]
    cells = [[_score(row, part, key, form) for key in titles] for row in known]
    rows = [(_named(row), *scores) for row, scores in zip(known, cells, strict=True)]
    return table(("", *titles.values()), rows) if rows else ""


def _score(row: Mapping[str, Any], part: str, key: str, form: str) -> str:
    """A score and its interval; blank for what was not measured."""
    if key not in row[part]:
        return ""
    score = form.format(row[part][key])
    if part != "metrics" or key not in row.get("intervals", {}):
        return score
    low, high = row["intervals"][key]
    return f"{score} ({low:.3f} to {high:.3f})"


def _named(row: Mapping[str, Any]) -> str:
    name = escape(row["name"])
    return f"**{name}** (this adapter)" if row["ours"] else name


def differences(facts: CardData) -> list[str]:
    """For each other system of the comparison: in what this one is really above or below it, by the paired tests."""
    ours = next((row["name"] for row in facts.systems if row["ours"]), None)
    tests = (facts.comparison or {}).get("tests", [])
    turned = [{**test, "difference": -test["difference"]} for test in tests if test["second"] == ours]
    others = [test["first"] for test in tests if test["second"] == ours]
    mine = [{**test, "second": other} for test, other in zip(turned, others, strict=True)]
    mine += [test for test in tests if test["first"] == ours]
    named = [{**test, "first": escape(ours), "second": escape(test["second"])} for test in mine]
    return differences_text(named).splitlines()


def parts_table(facts: CardData, kind: str) -> str:
    """The scores of this adapter on parts of the split: by "modality" of the image, or "length" of the reference."""
    parts = (facts.evaluation or {}).get("breakdown", {}).get(kind, [])
    rows = [
        (escape(part["value"]), cell(part["n"]), *(_score(part, "metrics", key, "{:.4f}") for key in FEW))
        for part in parts
    ]
    return table((kind, "images", *FEW.values()), rows) if rows else ""


def kinds_table(facts: CardData) -> str:
    """What the captions say against what the references say, by kind of fact."""
    kinds = (facts.evaluation or {}).get("facts", {}).get("kinds", {})
    rows = [{"kind": kind, **counted} for kind, counted in kinds.items() if counted["said"] or counted["true"]]
    return measured_table({"kind": "", **COUNTED}, rows)


def sides_table(facts: CardData) -> str:
    """How often a side that the reference names (rows) became another in the caption (columns)."""
    sides = (facts.evaluation or {}).get("facts", {}).get("sides", {})
    rows = [
        (f"reference: {row}", *(cell(sides[row][column]) for column in LATERALITIES))
        for row in LATERALITIES
        if row in sides
    ]
    return table(("", *(f"caption: {side}" for side in LATERALITIES)), rows) if rows else ""


def splits_table(facts: CardData) -> str:
    """What was read, left out and used of each split; what nothing was left out for has no column."""
    splits = dict((facts.environment or {}).get("data", {}))
    if facts.evaluation and facts.evaluation.get("data"):
        of = dict(pair.partition(":")[::2] for pair in facts.evaluation["signature"].split("|"))
        counts = {**facts.evaluation["data"], "rows": facts.evaluation["n"], "fingerprint": of.get("data")}
        splits.setdefault(facts.evaluation["split"], counts)
    rows = [{"split": name, **counts} for name, counts in splits.items()]
    always = ("split", "rows", "read", "fingerprint")
    shown = [key for key in SPLIT_COLUMNS if key in always or any(row.get(key) for row in rows)]
    return measured_table({key: SPLIT_COLUMNS[key] for key in shown}, rows)


def recipe_table(recipe: Mapping[str, Any]) -> str:
    """Every key and value, and medcap's default where the value is another."""
    rows = [(code(key), code(value), _other_default(key, value)) for key, value in recipe.items()]
    return table(("key", "value", "medcap's default, where it is another"), rows, "---")


def _other_default(key: str, value: Any) -> str:
    if key in REQUIRED or key not in DEFAULTS:
        return ""
    default = getattr(DEFAULTS[key], "value", DEFAULTS[key])
    if not isinstance(default, (str, int, float, bool, type(None))):  # made when it is needed, as a list is
        return ""
    return "" if default == value else code(default)


def curve_table(facts: CardData) -> str:
    """A row per evaluation while training."""
    return measured_table(CURVE_COLUMNS, [{**line, "epoch": f"{line['epoch']:g}"} for line in facts.curve])


def kept_epoch(recipe: Mapping[str, Any]) -> str | None:
    """By which validation metric the released epoch was chosen; None for the last one."""
    if not recipe.get("load_best_model_at_end", DEFAULTS["load_best_model_at_end"]):
        return None
    return str(recipe.get("metric_for_best_model", DEFAULTS["metric_for_best_model"]))


def versions_table(environment: Mapping[str, Any]) -> str:
    """Whatever environment.json holds beside the data."""
    single = {key: value for key, value in environment.items() if key not in ("data", "packages")}
    known = {**single, **environment.get("packages", {})}
    rows = [(escape(key), escape(value)) for key, value in known.items() if value is not None]
    return table(("", "value"), rows, "---") if rows else ""


def not_above(evaluation: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """The metrics in which an evaluation is not above a baseline."""
    ours, floor = evaluation["metrics"], baseline["metrics"]
    return [title for key, title in TITLES.items() if key in floor and ours.get(key, 0) <= floor[key]]
