"""Hyper-parameter search: trials until there are enough, and the results after each of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from medcap.recipe import Recipe, RecipeError, read_recipe
from medcap.reporting.tuning_page import SearchResult, TrialRow, write_results
from medcap.tuning.space import describe, own_values, read_space
from medcap.tuning.study import FINISHED, Search, open_search
from medcap.tuning.trial import metric_name, remove_weights, run_trial

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
BEST = "best.yaml"
MIN_IMPORTANCE = 8  # complete trials, of which the best quarter are compared with all


def tune(config: Path, space_file: Path, trials: int, out: Path, overrides: list[str]) -> SearchResult:
    """Search the space of a recipe until it has a number of trials; started again, it continues.

    Args:
        config: The recipe.
        space_file: The values of its keys.
        trials: Number of trials, those of earlier and other processes included.
        out: Folder of the search. It will contain best.yaml, trials.csv, plots, report.html, and the study.
        overrides: Options that override keys of the recipe, as for `medcap train`.

    Raises:
        RecipeError: The recipe or the space is wrong, or `out` has another search.
    """
    arguments = ["--config", str(config), *overrides]
    recipe = read_recipe(arguments)
    _check_recipe(recipe)
    search = open_search(out, recipe, read_space(space_file, arguments))
    while True:
        with search.next_trial(trials) as trial:
            if trial is None:
                break
            sys.stderr.write(f"\ntrial {trial.number} ({trial.number + 1} of {trials}): {describe(trial.params)}\n")
            run_trial(search, trial, arguments)
        with search.lock():
            result = _write(search, config, recipe, arguments)
    with search.lock():
        result = _write(search, config, recipe, arguments)
    if running := len(search.trials(TrialState.RUNNING)):
        sys.stderr.write(f"{running} trials are running in other processes, which write the results again\n")
    return result


def _check_recipe(recipe: Recipe) -> None:
    args = recipe.training
    for key in ("push_to_hub", "dry_run", "resume_from_checkpoint"):
        if getattr(args, key):
            raise RecipeError(f"{key} cannot be used by a search, which trains many runs; remove it")
    if (strategy := str(recipe.value("eval_strategy"))) != "epoch":
        raise RecipeError(f"a search compares epochs: eval_strategy is {strategy!r}, must be 'epoch'")


def _write(search: Search, config: Path, recipe: Recipe, arguments: list[str]) -> SearchResult:
    """Write the results of the finished trials, and remove their weights."""
    finished, metric = search.trials(*FINISHED), metric_name(recipe)
    remove_weights(search)
    rows = [_row(trial) for trial in finished]
    own = own_values(search.space, recipe)
    choose = max if recipe.training.greater_is_better else min
    complete = [row for row in rows if row.state == "complete"]
    if not complete:
        raise RecipeError(f"{search.out}: no trial is complete yet")
    result = SearchResult(
        recipe=str(config),
        metric=metric,
        greater_is_better=bool(recipe.training.greater_is_better),
        space={key: _text(values) for key, values in search.space.items()},
        before={key: recipe.value(key) for key in search.space},
        rows=rows,
        best=choose(complete, key=_value),
        own=next((row for row in complete if row.params == own), None),
        importance=_importance(search.study) if len(complete) >= MIN_IMPORTANCE else {},
    )
    values = {**result.best.params, "output_dir": str(search.out / "best")}
    read_recipe(arguments, values, "best trial").save(search.out / BEST)
    write_results(search.out, result)
    return result


def _value(row: TrialRow) -> float:
    assert row.value is not None
    return row.value


def _row(trial: FrozenTrial) -> TrialRow:
    note = f"same as trial {trial.user_attrs['same as']}" if "same as" in trial.user_attrs else ""
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state],
        value=trial.value,
        epochs=len(trial.intermediate_values),
        params=trial.params,
        note=trial.user_attrs.get("error", note),
    )


def _importance(study: optuna.Study) -> Mapping[str, float]:
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25, evaluate_on_local=True)
    return get_param_importances(study, evaluator=evaluator)


def _text(values: BaseDistribution) -> str:
    if isinstance(values, CategoricalDistribution):
        return ", ".join(map(str, values.choices))
    assert isinstance(values, (FloatDistribution, IntDistribution))
    return f"{values.low:g} to {values.high:g}{', log scale' if values.log else ''}"


def summary(result: SearchResult) -> list[str]:
    """Return lines for the terminal: the best trial, the recipe's own, and the values that differ."""
    best, own = result.best, f" (the recipe: {result.own.value:.4f})" if result.own else ""
    lines = [f"best of {len(result.rows)} trials: trial {best.number}, {result.metric} {best.value:.4f}{own}"]
    changed: dict[str, Any] = {key: value for key, value in best.params.items() if value != result.before[key]}
    return [*lines, *(f"  {key}: {result.before[key]} -> {value}" for key, value in changed.items())]
