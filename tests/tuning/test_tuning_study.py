"""The trials of a study do not depend on interruptions, and no two processes have the same one.

pytest tests/tuning/test_tuning_study.py
"""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from medcap.recipe import RecipeError, read_recipe
from medcap.tuning.study import FINISHED, Search, open_search

SPACE = {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True), "lora_r": CategoricalDistribution([4, 8, 16])}
TRIALS = 16  # the first ten are random, the others depend on the values before


class Killed(BaseException):
    """Ends a process of the search; a kill gives it no time to change the study either."""


@pytest.fixture
def recipe(recipe_file):
    """The smallest recipe with a learning rate in the space."""
    return read_recipe(["--config", recipe_file(learning_rate=1e-4, lora_r=8)])


def run(search, step=lambda trial, name: None, trials=TRIALS):
    """Run trials of two epochs whose metric is a function of the values; `step` may end the process."""
    while True:
        with search.next_trial(trials) as trial:
            if trial is None:
                return
            step(trial, "begun")
            value = -abs(math.log10(trial.params["learning_rate"]) + 3) + trial.params["lora_r"] / 100
            for epoch in (1, 2):
                trial.report(value * epoch, epoch)
                step(trial, "reported")
                if epoch == 1 and trial.should_prune():
                    search.study.tell(trial, state=TrialState.PRUNED)
                    break
            else:
                search.study.tell(trial, value)


def results(search):
    return [(trial.number, trial.state, trial.params, trial.value) for trial in search.trials(*FINISHED)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the results of a search without interruption, by its function."""
    cache = {}

    def of(recipe):
        if not cache:
            search = open_search(tmp_path_factory.mktemp("undisturbed"), recipe, SPACE)
            run(search)
            cache["results"] = results(search)
        return cache["results"]

    return of


def test_first_trial_has_the_values_of_the_recipe_and_others_are_pruned(recipe, undisturbed):
    expected = undisturbed(recipe)
    assert [number for number, *_ in expected] == list(range(TRIALS))
    assert expected[0][2] == {"learning_rate": 1e-4, "lora_r": 8}
    assert {state for _, state, *_ in expected} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_interrupted_search_ends_with_the_same_trials(recipe, undisturbed, tmp_path):
    for number, name in ((3, "begun"), (6, "reported"), (12, "reported")):

        def step(trial, now, number=number, name=name):
            if (trial.number, now) == (number, name):
                raise Killed

        with pytest.raises(Killed):
            run(open_search(tmp_path, recipe, SPACE), step)
    search = open_search(tmp_path, recipe, SPACE)
    run(search)
    assert results(search) == undisturbed(recipe)


@pytest.mark.parametrize("method", ["ask", "enqueue_trial"])
@pytest.mark.parametrize("after", [False, True])
def test_kill_while_a_trial_is_chosen_changes_no_values(recipe, undisturbed, tmp_path, monkeypatch, method, after):
    """Between the steps of `next_trial`; a trial may lack some of its values then."""
    run(open_search(tmp_path, recipe, SPACE), trials=12)
    call = getattr(optuna.Study, method)

    def end(*args):
        raise Killed

    def killed(*args, **kwargs):
        if after:
            call(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, method, killed)
        with pytest.raises(Killed):
            run(open_search(tmp_path, recipe, SPACE))
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "suggest_categorical", end)  # after the learning rate
        with pytest.raises(Killed):
            run(open_search(tmp_path, recipe, SPACE))
    search = open_search(tmp_path, recipe, SPACE)
    run(search)
    assert results(search) == undisturbed(recipe)


def test_two_processes_have_different_trials_and_stop_at_the_number(recipe, tmp_path):
    first, second = open_search(tmp_path, recipe, SPACE), open_search(tmp_path, recipe, SPACE)
    seen = []
    while True:
        with first.next_trial(7) as one, second.next_trial(7) as two:
            trials = [trial for trial in (one, two) if trial is not None]
            for trial in trials:
                seen.append((trial.number, tuple(trial.params.values())))
                trial.study.tell(trial, 1.0)
        if not trials:
            break
    assert [number for number, _ in seen] == list(range(7))
    assert len({values for _, values in seen}) == 7


def test_trial_of_a_running_process_is_not_taken(recipe, tmp_path):
    first, second = open_search(tmp_path, recipe, SPACE), open_search(tmp_path, recipe, SPACE)
    with first.next_trial(1) as one:
        assert one.number == 0
        with second.next_trial(1) as two:
            assert two is None
    with second.next_trial(1) as two:  # the process of the first has ended without a result
        assert two.number == 0


def test_more_trials_are_added_to_a_finished_search(recipe, undisturbed, tmp_path):
    run(open_search(tmp_path, recipe, SPACE), trials=5)
    search = open_search(tmp_path, recipe, SPACE)
    run(search)
    assert results(search) == undisturbed(recipe)


def test_another_recipe_or_space_is_refused(recipe, recipe_file, tmp_path):
    open_search(tmp_path, recipe, SPACE)
    other = read_recipe(["--config", recipe_file(learning_rate=2e-4, lora_r=8)])
    with pytest.raises(RecipeError, match=r"search with other settings: learning_rate was 0.0001 and is 0.0002; use"):
        open_search(tmp_path, other, SPACE)
    with pytest.raises(RecipeError, match="lora_r in the space was .* and is None"):
        open_search(tmp_path, recipe, {"learning_rate": SPACE["learning_rate"]})
    assert isinstance(open_search(tmp_path, recipe, SPACE), Search)
