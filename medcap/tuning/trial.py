"""One trial of a search: a training run in this process, stopped early if it is worse than the median."""

from __future__ import annotations

import gc
import importlib.util
import math
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState

from medcap.io import remove_folder
from medcap.launch import shipped_folder
from medcap.logs import error_line
from medcap.recipe import Recipe, read_recipe
from medcap.reporting.plots import read_curve
from medcap.training.run_folder import is_finished
from medcap.tuning.study import FINISHED, Search

KEPT = {"recipe.yaml", "environment.json", "metrics.jsonl"}  # of the folder of a finished trial
# a trial fails with these, for example if its loss became infinite or its batch needs too much memory
FAILURES = (ValueError, FloatingPointError, MemoryError)


class EpochReport(TrainerCallback):
    """Reports the metric of each epoch, and stops a run that is worse than the median of the others."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Report the epoch; raises TrialPruned before the checkpoint of the epoch is written."""
        self.trial.report(metrics[f"eval_{self.metric}"], math.ceil(state.epoch or 0))
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned


def metric_name(recipe: Recipe) -> str:
    """Return the metric that trials are compared by."""
    return str(recipe.training.metric_for_best_model).removeprefix("eval_")


def run_trial(search: Search, trial: Trial, recipe: list[str]) -> None:
    """Train the recipe with the values of a trial, and record the result in the study.

    Args:
        search: The search.
        trial: A trial that this process holds.
        recipe: Arguments of `read_recipe`.

    Raises:
        Exception: Any error of the first trial, which has the recipe's own values, and errors that have other reasons
            than the values of the trial. The trial remains interrupted.
    """
    try:
        if (twin := _twin(search, trial)) is not None:
            search.study.tell(trial, _copied(twin, trial), state=twin.state)
            return
        folder = search.folder(trial.number)
        changes = {**trial.params, "output_dir": str(folder), "save_total_limit": 1}
        settings = read_recipe(recipe, changes, f"trial {trial.number}")
        if not is_finished(folder):  # killed before its result was recorded
            _train(settings, EpochReport(trial, metric_name(settings)))
        search.study.tell(trial, _value(settings))
    except optuna.TrialPruned:
        search.study.tell(trial, state=TrialState.PRUNED)
    except FAILURES as error:
        if not search.trials(TrialState.COMPLETE):
            raise
        trial.set_user_attr("error", error_line(error))
        search.study.tell(trial, state=TrialState.FAIL)
    finally:
        gc.collect()  # the trainer's cycles hold the memory of a GPU


def _twin(search: Search, trial: Trial) -> FrozenTrial | None:
    """Return a finished trial with the same values: a run is reproducible, so its result would be the same."""
    finished = search.trials(TrialState.COMPLETE, TrialState.PRUNED)
    return next((other for other in finished if other.params == trial.params), None)


def _copied(twin: FrozenTrial, trial: Trial) -> float | None:
    """Copy the epochs of another trial, and return its value; None if it was pruned."""
    trial.set_user_attr("same as", twin.number)
    for step, value in twin.intermediate_values.items():
        trial.report(value, step)
    return twin.value if twin.state == TrialState.COMPLETE else None


def _train(recipe: Recipe, report: EpochReport) -> None:
    with redirect_stdout(sys.stderr):
        _train_script().train(recipe, [report])


@cache
def _train_script() -> ModuleType:
    """Return scripts/train.py as a module."""
    spec = importlib.util.spec_from_file_location("medcap_train_script", shipped_folder("scripts") / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _value(recipe: Recipe) -> float:
    """Return the validation metric of the adapter that a run saved: of its best epoch, or of its last one."""
    lines = read_curve(Path(recipe.training.output_dir) / "metrics.jsonl")
    values = [float(line[f"eval_{metric_name(recipe)}"]) for line in lines]
    if not recipe.training.load_best_model_at_end:
        return values[-1]
    return max(values) if recipe.training.greater_is_better else min(values)


def remove_weights(search: Search) -> None:
    """Remove the checkpoints and adapters of finished trials; recipe, environment and metrics remain."""
    for trial in search.trials(*FINISHED):
        for path in search.folder(trial.number).glob("*"):
            if path.is_dir():
                remove_folder(path)
            elif path.name not in KEPT:
                path.unlink()
