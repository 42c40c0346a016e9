"""Dry run: four steps, an evaluation and a checkpoint in a temporary folder, by the code of training itself.

This module only selects the images, changes the recipe and measures.
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
from medcap.disk import nearest_folder
from medcap.extras import install_command
from medcap.logs import error_line
from medcap.recipe import Recipe, RecipeError
from medcap.training.plan import Timing

TRACKERS = {"tensorboard", "trackio", "wandb"}  # of the extra "track"
DECODED = 256  # images of each split that a dry run decodes; a run, and `medcap data audit`, decode all


def evenly_spaced(rows: int, count: int = DECODED) -> list[int]:
    """Return at most `count` row numbers below `rows`, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).round().astype(int)).tolist()


def dry_run_rows(lengths: Sequence[int], batch: int, grouped: bool) -> list[int]:
    """Return the rows of four steps of `batch` captions: the longest captions, typical ones, and both again.

    The longest show whether memory suffices. The typical ones are timed twice: with new images, and with images whose
    features may be cached. If batches are `grouped` by length, typical captions are those of medium length.
    """
    order = np.argsort(lengths, kind="stable")
    start = max((len(order) - batch) // 2, 0)
    typical = order[start : start + batch] if grouped else order[evenly_spaced(len(order), batch)]
    longest = order[::-1][:batch]
    return [int(row) for rows in (longest, typical) * 2 for row in np.resize(rows, batch)]


def dry_run_data(
    recipe: Recipe, splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, batch: int
) -> tuple[DatasetDict, int]:
    """Decode a sample of the images; return the rows to train on and to caption, and the number of decoded images.

    One unreadable image is excluded with a warning, even if it exceeds `max_broken` of the sample: its fraction of
    the split is smaller. `batch` is the number of captions per step.
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
    args, is_main = copy.copy(recipe.training), recipe.training.process_index == 0
    disk = nearest_folder(Path(args.output_dir))
    names = broadcast_object_list([tempfile.mkdtemp(prefix=".medcap-dry-run-", dir=disk) if is_main else ""])
    folder = Path(names[0])
    args.output_dir, args.disable_tqdm, args.report_to = str(folder / "run"), True, []
    args.num_train_epochs, args.max_steps, args.eval_delay = 1, -1, 0
    args.train_sampling_strategy = "sequential"
    args.eval_strategy = args.save_strategy = IntervalStrategy.EPOCH
    cache = "off" if recipe.model.feature_cache == "off" or recipe.data.views == 0 else str(folder / "features")
    model = dataclasses.replace(recipe.model, feature_cache=cache)
    try:
        data = dataclasses.replace(recipe.data, data_weights=None)  # `dry_run_data` has chosen the rows
        yield dataclasses.replace(recipe, data=data, training=args, model=model, given=frozenset())
    finally:
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)


def check_reporters(args: Seq2SeqTrainingArguments) -> None:
    """Raise RecipeError if an integration in `report_to` is not installed, with the command that installs it."""
    for name in args.report_to or []:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (RuntimeError, ImportError) as error:
            advice = f"; {install_command('track')}" if name in TRACKERS else ""
            raise RecipeError(f"report_to is {name}: {error_line(error)}{advice}") from error


class StepTimer(TrainerCallback):
    """Measures the seconds of each step and of the evaluation."""

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

    def timing(self, captioned: int, views: int = 1) -> Timing:
        """Return the times of steps 2 and 4: steps 1 and 3 hold the longest captions, and step 1 the warm-up."""
        return Timing(self.steps[1], self.steps[3], self.evaluation, captioned, views)

    def _lap(self) -> float:
        before, self.last = self.last, time.monotonic()
        return self.last - before
