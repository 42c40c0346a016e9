"""Run a function in worker processes, one of which may die.

`multiprocessing.Pool` waits forever for the result of a worker that a decoder written in C aborted, or that was killed
for lack of memory.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHUNK = 16  # items that are sent to a worker at a time


class Workers:
    """A pool of worker processes that names the item at which one dies; use it as a context manager.

    Args:
        number: Number of processes.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool = _start(number)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], name: Callable[[Item], str]
    ) -> Iterator[Result]:
        """Yield `function(item)` of every item, in order.

        When a worker dies, the results that its pool has lost are computed one at a time, each alone in a worker.

        Raises:
            ValueError: A worker died at an item, and died again at that item alone; the message has its `name`.
        """
        done = 0
        try:
            for result in self._pool.map(function, items, chunksize=_CHUNK):
                done += 1
                yield result
        except BrokenProcessPool:
            yield from _one_at_a_time(function, items[done:], name)
            self._pool = _start(self.number)


def _start(number: int) -> ProcessPoolExecutor:
    """Return a pool whose workers leave Ctrl-C to this process."""
    return ProcessPoolExecutor(number, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def _one_at_a_time(
    function: Callable[[Item], Result], items: Sequence[Item], name: Callable[[Item], str]
) -> Iterator[Result]:
    with _start(1) as pool:
        for item in items:
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                raise ValueError(
                    f"{name(item)}: the process that works on it dies: a fault in a decoder, or too little memory; "
                    "remove it, or use fewer processes (num_proc)"
                ) from None
