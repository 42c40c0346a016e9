"""A dry run: a run of four steps in a temporary folder, and the plan of the full run that follows from it.

It uses the code of training itself: four steps, an evaluation and a checkpoint. This module only selects the images,
changes the recipe and measures.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import (
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from medcap.data.captions import TokenizedCaptions
from medcap.data.selection import check_images
from medcap.recipe import Recipe
from medcap.training.plan import Timing, nearest_folder

DECODED = 256  # images of each split that a dry run decodes; a run, and `medcap data audit`, decode all


def evenly_spaced(rows: int, count: int = DECODED) -> list[int]:
    """Return at most `count` row numbers below `rows`, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).round().astype(int)).tolist()


def dry_run_rows(lengths: Sequence[int], batch: int, grouped: bool) -> list[int]:
    """Return the rows of four steps: the longest captions, typical ones, and both again.

    The longest show whether memory suffices. The typical ones are timed twice: with new images, and when their
    features may be cached.

    Args:
        lengths: Tokens of every caption.
        batch: Captions per step.
        grouped: Whether the captions of a batch have similar lengths; typical ones are then those in the middle.
    """
    order = np.argsort(lengths, kind="stable")
    start = max((len(order) - batch) // 2, 0)
    typical = order[start : start + batch] if grouped else order[evenly_spaced(len(order), batch)]
    longest = order[::-1][:batch]
    return [int(row) for rows in (longest, typical) * 2 for row in np.resize(rows, batch)]


def dry_run_data(
    recipe: Recipe, splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, batch: int
) -> tuple[DatasetDict, int]:
    """Select the rows that a dry run trains on and captions, and decode a sample of the images.

    One image that cannot be decoded is left out with a warning, as in a run: it may be more than `max_broken` of the
    sample, and still less of the split.

    Args:
        recipe: The recipe of the full run.
        splits: Its data, from `load_splits`.
        tokenizer: The processor's.
        batch: Captions per step.

    Returns:
        The selected rows of each split, and the number of images that were decoded.
    """

    def lengths_of(rows: Dataset) -> list[int]:
        return TokenizedCaptions.tokenize(tokenizer, rows["caption"], recipe.data.prompt).lengths

    data, decoded = DatasetDict(), 0
    grouped = recipe.training.train_sampling_strategy == "group_by_length"
    with recipe.training.main_process_first(desc="decoding"):
        for split, rows in splits.items():
            longest = dry_run_rows(lengths_of(rows), batch, grouped)
            sample = {*evenly_spaced(len(rows)), *longest}
            decoded += len(sample)
            data[split] = check_images(rows.select(sorted(sample)), max(recipe.data.max_broken, 1 / len(sample)))
    lengths = lengths_of(data["train"])
    data["train"] = data["train"].select(dry_run_rows(lengths, batch, grouped))
    captioned = recipe.training.eval_batch_size * recipe.training.world_size
    data["valid"] = data["valid"].select(range(min(captioned, len(data["valid"]))))
    return data, decoded


@contextmanager
def dry_run_recipe(recipe: Recipe) -> Iterator[Recipe]:
    """Yield the recipe of the dry run: one epoch, evaluated and saved, without report_to.

    Its folder is on the disk of `output_dir`, the same for all processes, and removed at the end.
    """
    with _temporary_folder(recipe.training) as folder:
        args = copy.copy(recipe.training)
        args.output_dir, args.disable_tqdm = str(folder / "run"), True
        args.report_to = []
        args.num_train_epochs, args.max_steps, args.eval_delay = 1, -1, 0
        args.train_sampling_strategy = "sequential"
        args.eval_strategy = args.save_strategy = IntervalStrategy.EPOCH
        cache = recipe.model.feature_cache if recipe.model.feature_cache == "off" else str(folder / "features")
        model = dataclasses.replace(recipe.model, feature_cache=cache)
        yield dataclasses.replace(recipe, training=args, model=model, given=frozenset())


@contextmanager
def _temporary_folder(args: Seq2SeqTrainingArguments) -> Iterator[Path]:
    names = [""]
    if args.process_index == 0:
        names = [tempfile.mkdtemp(prefix=".medcap-dry-run-", dir=nearest_folder(Path(args.output_dir)))]
    broadcast_object_list(names)
    try:
        yield Path(names[0])
    finally:
        if args.process_index == 0:
            shutil.rmtree(names[0], ignore_errors=True)


def check_reporters(args: Seq2SeqTrainingArguments) -> None:
    """Raise RuntimeError if an integration in `report_to` is not installed."""
    for callback in get_reporting_integration_callbacks(args.report_to):
        callback()


class StepTimer(TrainerCallback):
    """Measures the seconds from the end of a step to the end of the next, and of the evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluation = 0.0
        self.last = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._lap())

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.evaluation = self._lap()

    def timing(self, captioned: int) -> Timing:
        """Return the times of steps 2 and 4: steps 1 and 3 hold the longest captions, and step 1 the warm-up."""
        return Timing(self.steps[1], self.steps[3], self.evaluation, captioned)

    def _lap(self) -> float:
        before, self.last = self.last, time.monotonic()
        return self.last - before
