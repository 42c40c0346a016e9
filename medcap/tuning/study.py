"""The study of a search: an SQLite file that several processes share, and that survives their end at any time.

The values of a trial depend only on the seed, its number, and the other trials: a restarted search ends with the
trials of an undisturbed one. A trial that was interrupted is continued under its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, Trial, TrialState

from medcap.locks import FolderInUseError, lock_file
from medcap.recipe import Recipe, RecipeError
from medcap.training.run_folder import FREE
from medcap.tuning.space import Space, own_values

NAME = "medcap"
DATABASE, LOCK = "study.db", "study.lock"
WAIT = 60  # seconds to wait for another process that writes the database
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Search:
    """A study in a folder.

    Attributes:
        out: The folder.
        space: The values of each key.
        seed: Of the search.
        storage: The database.
        study: The study in it.
    """

    out: Path
    space: Space
    seed: int
    storage: optuna.storages.RDBStorage
    study: optuna.Study

    def folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.out / "trials" / str(number)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, by number."""
        return self.study.get_trials(deepcopy=False, states=states)

    def lock(self) -> FileLock:
        """Return a lock that one process holds while it chooses a trial or writes results."""
        return FileLock(self.out / LOCK)

    @contextmanager
    def next_trial(self, count: int) -> Iterator[Trial | None]:
        """Yield an interrupted trial or a new one, which no other process has; None if `count` trials have begun."""
        with ExitStack() as held:
            with self.lock():
                trial = self._interrupted(held) or self._new(held, count)
            yield trial

    def _interrupted(self, held: ExitStack) -> Trial | None:
        for frozen in self.trials(TrialState.RUNNING):
            try:
                self._hold(held, frozen.number)
            except FolderInUseError:
                continue
            study = self.storage.get_study_id_from_name(NAME)
            number = self.storage.get_trial_id_from_study_id_trial_number(study, frozen.number)
            return self._with_values(Trial(self.study, number))
        return None

    def _new(self, held: ExitStack, count: int) -> Trial | None:
        if not self.trials(TrialState.WAITING):
            trials = self.study.get_trials(deepcopy=False)
            if len(trials) >= count:
                return None
            self.study.enqueue_trial(self._suggest(trials))  # at once, so that a kill leaves all values or none
        trial = self.study.ask()
        self._hold(held, trial.number)
        return self._with_values(trial)

    def _hold(self, held: ExitStack, number: int) -> None:
        folder = self.folder(number)
        folder.parent.mkdir(exist_ok=True)
        held.enter_context(lock_file(folder.with_suffix(".lock"), folder))

    def _suggest(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """Return the values of the next trial, from a sampler without a history of its own."""
        seed = int(np.random.SeedSequence([self.seed, len(trials)]).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        copy = optuna.create_study(sampler=sampler, direction=self.study.direction)
        copy.add_trials(trials)
        return copy.ask(self.space).params

    def _with_values(self, trial: Trial) -> Trial:
        """Return a trial whose values are those that it was enqueued with."""
        for key, values in self.space.items():
            if isinstance(values, CategoricalDistribution):
                trial.suggest_categorical(key, values.choices)
            elif isinstance(values, IntDistribution):
                trial.suggest_int(key, values.low, values.high, log=values.log)
            elif isinstance(values, FloatDistribution):
                trial.suggest_float(key, values.low, values.high, log=values.log)
        return trial


def open_search(out: Path, recipe: Recipe, space: Space) -> Search:
    """Create the study of a search, whose first trial has the recipe's own values, or open an earlier one.

    Raises:
        RecipeError: The study in `out` was created with another recipe or space.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        url, options = f"sqlite:///{out.absolute() / DATABASE}", {"connect_args": {"timeout": WAIT}}
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize" if recipe.training.greater_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
        settings = _settings(recipe, space)
        _refuse_changes(out, study.user_attrs.get("settings", settings), settings)
        study.set_user_attr("settings", settings)
        if not study.get_trials(deepcopy=False) and (values := own_values(space, recipe)):
            study.enqueue_trial(values)
    return Search(out, space, recipe.training.seed, storage, study)


def _settings(recipe: Recipe, space: Space) -> dict[str, Any]:
    """Return what all trials of a study have in common."""
    free = FREE - {"data_dir"}
    keys = {key: value for key, value in recipe.as_dict().items() if key not in free}
    return {**keys, **{f"{key} in the space": distribution_to_json(values) for key, values in space.items()}}


def _refuse_changes(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise RecipeError(
            f"{out} has a search with other settings: {key} was {before.get(key)} and is {now.get(key)}; "
            "use another --out"
        )
