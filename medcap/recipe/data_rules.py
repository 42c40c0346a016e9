"""Settings of the data that contradict each other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medcap.recipe.arguments import Recipe

LARGEST_WEIGHT = 100


def sources_fault(recipe: Recipe) -> str:
    """Return what is wrong with the data sets of a recipe and their weights; "" if nothing is."""
    data = recipe.data.data_dir
    paths = [data] if isinstance(data, str) else data
    if not all(path.strip() for path in paths):
        return f"data_dir lists {paths}, with a blank name: remove it"
    same = [os.path.normpath(path) for path in paths]
    if repeated := [path for path in same if same.count(path) > 1]:
        return f"data_dir lists {repeated[0]} twice: list it once, and raise its number in data_weights"
    weights = recipe.data.data_weights
    return "" if weights is None else _weights_fault(len(paths), weights, recipe)


def _weights_fault(sources: int, weights: list[float], recipe: Recipe) -> str:
    if sources == 1:
        return "data_weights has no effect on one data set: remove it, or list several in data_dir"
    if len(weights) != sources:
        return f"data_weights has {len(weights)} numbers for the {sources} data sets of data_dir: give one for each"
    if wrong := [weight for weight in weights if not 0 < weight <= LARGEST_WEIGHT]:
        return f"data_weights has {wrong[0]:g}; allowed is above 0 and at most {LARGEST_WEIGHT}"
    strategy = recipe.training.train_sampling_strategy
    if strategy != "random" and any(weight != 1 for weight in weights):
        return f"data_weights draws images at random, but train_sampling_strategy is {strategy}: set it to random"
    return ""
