"""A worker process that dies ends the work with a line that names its item; it never hangs."""

import itertools
import os
import signal
import time

import pytest

from medcap.data.workers import Workers

DEATHS = {
    "killed, as without memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(0),
}


def die_at(item):
    """Return the item times 10; the process ends at (how, ...)."""
    if isinstance(item, tuple):
        DEATHS[item[0]]()
    return 10 * item


def die_once(path):
    """Return the length of the path; the process ends if the file exists, and removes it."""
    if os.path.exists(path):
        os.remove(path)
        os._exit(1)
    return len(path)


def test_results_have_the_order_of_the_items():
    with Workers(2) as workers:
        assert list(workers.map(die_at, range(100), str)) == list(range(0, 1000, 10))
        assert list(workers.map(die_at, [], str)) == []


@pytest.mark.parametrize("how", DEATHS)
def test_item_that_ends_its_worker_is_named(how):
    with Workers(2) as workers:
        results = workers.map(die_at, [*range(70), (how, "image 7"), *range(40)], lambda item: item[1])
        assert list(itertools.islice(results, 70)) == list(range(0, 700, 10))
        with pytest.raises(ValueError, match="^image 7: the process that works on it dies"):
            next(results)


def test_death_that_does_not_repeat_costs_no_result(tmp_path):
    (tmp_path / "20").touch()
    paths = [str(tmp_path / str(i)) for i in range(50)]
    with Workers(2) as workers:
        for _ in range(2):  # and the pool is as before
            assert list(workers.map(die_once, paths, str)) == [len(path) for path in paths]


def test_error_in_a_function_is_raised_without_the_remaining_work():
    with pytest.raises(TypeError), Workers(2) as workers:
        list(workers.map(time.sleep, [None, *[0.005] * 100_000], str))
