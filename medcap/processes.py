"""Work on the rows of a data set that several processes share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from datasets import Dataset

Result = TypeVar("Result")
WAIT = timedelta(days=7)  # of the other processes, while the main one decodes images and scores captions


@contextmanager
def launched_processes() -> Iterator[PartialState | None]:
    """Connect the processes of `accelerate launch`, which end the block together; None if there is only one.

    Ctrl-C, which the launcher ignores, ends the main process, after which the launcher ends the others.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield None
        return
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    processes = PartialState(cpu=on_cpu, timeout=WAIT)
    signal.signal(signal.SIGINT, signal.default_int_handler if processes.is_main_process else signal.SIG_IGN)
    yield processes
    processes.wait_for_everyone()  # a scheduler would see processes end while the main one still works
    processes.destroy_process_group()


def in_parts(
    processes: PartialState | None, rows: Dataset, batch_size: int, work: Callable[[Dataset, int], list[Result]]
) -> list[Result]:
    """Return the results of `work` for all rows, on every process, each of which does a part of them.

    A part is a number of complete batches, so that batches, and how their matrix products are rounded, do not depend
    on the number of processes.

    Args:
        processes: All of them must call this; None for this process alone.
        rows: n rows, the same on every process.
        batch_size: Of the processes, the smallest is used.
        work: Returns a list for the given rows and batch size; the lists are joined in the order of the rows.
    """
    if processes is None:
        return work(rows, batch_size)
    size = min(gather_object([batch_size]))
    with processes.split_between_processes(list(range(0, len(rows), size))) as starts:
        part = range(starts[0], min(starts[-1] + size, len(rows))) if starts else ()
        return gather_object(work(rows.select(part), size) if starts else [])
