"""The space of a hyper-parameter search: a YAML file with the values that each key of a recipe may take.

learning_rate: {low: 1.0e-4, high: 1.0e-3, log: true}
lora_target_modules: [attention, text]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from medcap.recipe import DataArguments, RecipeError, check_values, read_recipe, read_yaml
from medcap.recipe.reader import check_known
from medcap.recipe.suggestions import suggest
from medcap.recipe.values import convert, describe_type, key_types
from medcap.training.run_folder import FREE

Space = dict[str, BaseDistribution]
ENDS = ("low", "high")
TRAINING_DATA = {"train_fraction", "max_train_samples", "exclude_leaks", "max_caption_tokens", "prompt"}
SEEDS = {"seed", "data_seed", "fraction_seed"}
# keys that determine how trials are compared, or how a run is started
SET_BY_RECIPE = {
    *(field.name for field in fields(DataArguments) if field.name not in TRAINING_DATA), *FREE, "dry_run",
    "metric_for_best_model", "greater_is_better", "load_best_model_at_end", "eval_strategy", "save_strategy",
}  # fmt: skip


def read_space(path: Path, recipe: list[str]) -> Space:
    """Read a space and check it against the keys of a recipe and their ranges.

    Args:
        path: YAML file: for each key a list of choices, or a mapping with `low`, `high` and perhaps `log: true`.
        recipe: Arguments of `read_recipe`.

    Raises:
        RecipeError: A key, a value or a combination of values is not allowed; the message names `path`.
    """
    content = read_yaml(path, "space")
    try:
        space = {key: _distribution(key, values) for key, values in content.items()}
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not space:
        raise RecipeError(f"{path}: a space needs at least one key")
    for trial in _corners(space):
        read_recipe(recipe, trial, f"{path}, with {describe(trial)}")
    return space


def describe(values: dict[str, Any]) -> str:
    """Return "key value, key value" for a message."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in values.items())  # fmt: skip


def own_values(space: Space, recipe: Any) -> dict[str, Any] | None:
    """Return the values of the recipe itself; None if one of them lies outside the space."""
    values = {key: recipe.value(key) for key in space}
    return values if all(_contains(space[key], value) for key, value in values.items()) else None


def _contains(values: BaseDistribution, value: Any) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, (FloatDistribution, IntDistribution))
    return value is not None and values.low <= value <= values.high


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Yield trials that together have every choice and every end of a range."""
    first = {key: _extremes(values)[0] for key, values in space.items()}
    yield first
    for key, values in space.items():
        yield from ({**first, key: value} for value in _extremes(values)[1:])


def _extremes(values: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(values, CategoricalDistribution):
        return values.choices
    assert isinstance(values, (FloatDistribution, IntDistribution))
    return values.low, values.high


def _distribution(key: str, values: Any) -> BaseDistribution:
    check_known(key)
    if key in SEEDS:
        raise RecipeError(f"{key} cannot be searched: the best seed is chance; remove it")
    if key in SET_BY_RECIPE:
        raise RecipeError(f"{key} cannot be searched: it must be the same in all trials; set it in the recipe")
    if isinstance(values, list):
        return _choices(key, values)
    if isinstance(values, dict):
        return _range(key, values)
    raise RecipeError(f"{key} is {values!r}; expected a list of choices, or {{low: ..., high: ...}}")


def _choices(key: str, values: list[Any]) -> CategoricalDistribution:
    if wrong := [value for value in values if not isinstance(value, (str, int, float))]:
        raise RecipeError(f"{key} has the choice {wrong[0]!r}; expected text, a number, true or false")
    if len(set(values)) < max(len(values), 2):
        raise RecipeError(f"{key} has the choices {values}; expected at least two different ones")
    return CategoricalDistribution([_checked(key, value) for value in values])


def _checked(key: str, value: Any) -> Any:
    """Return a value as the type of its key, or as it is written if that is not one number or text."""
    converted = convert(key, value)
    check_values({key: converted})
    return converted if isinstance(converted, (bool, int, float)) else value


def _range(key: str, values: dict[Any, Any]) -> BaseDistribution:
    kinds = [kind for kind in key_types()[key] if kind in (int, float)]
    if not kinds:
        expected = " or ".join(map(describe_type, key_types()[key]))
        raise RecipeError(f"{key} has no range, it takes {expected}; list choices: {key}: [..., ...]")
    if unknown := [name for name in values if name not in (*ENDS, "log")]:
        raise RecipeError(
            f"{key} has {unknown[0]!r}; {suggest(str(unknown[0]), (*ENDS, 'log'))}allowed are low, high, log"
        )
    if missing := [end for end in ENDS if values.get(end) is None]:
        raise RecipeError(f"{key} has no {missing[0]}; write {key}: {{low: ..., high: ...}}")
    if not isinstance(log := values.get("log", False), bool):
        raise RecipeError(f"{key} has log {log!r}; expected true or false")
    low, high = (_checked(key, values[end]) for end in ENDS)
    if low >= high:
        raise RecipeError(f"{key} has low {low} and high {high}; low must be below high")
    if log and low <= 0:
        raise RecipeError(f"{key} has low {low}; a log scale needs a low above 0")
    return (IntDistribution if kinds[0] is int else FloatDistribution)(low, high, log=log)
