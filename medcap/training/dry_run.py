"""A dry run: the run itself in miniature, in a folder that goes away, and the plan that comes of it.

Nothing is checked by other code than training's own: four steps, an evaluation and a checkpoint are done as the run
will do them. So this holds only what makes the miniature, and what is told of it.
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
from datasets import DatasetDict
from transformers import (
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from medcap.data.captions import caption_lengths
from medcap.data.selection import check_images
from medcap.recipe import Recipe
from medcap.training.plan import Measured, existing

LOOKED_AT = 256  # images of each split that are decoded; the run, and `medcap data audit`, decode them all


def spread(rows: int, most: int = LOOKED_AT) -> list[int]:
    """At most `most` row numbers out of `rows`, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(int)).tolist()


def rehearsal_rows(lengths: Sequence[int], batch: int, grouped: bool) -> list[int]:
    """Row numbers of four steps of `batch` captions, by their `lengths`: longest, usual, longest, usual.

    The longest show whether memory suffices. The usual are timed: when images are met first, and again when their
    features may have been kept. `grouped`: captions of one batch are about equally long, here the middle ones.
    """
    order = np.argsort(lengths, kind="stable")
    start = max((len(order) - batch) // 2, 0)
    usual = order[start : start + batch] if grouped else order[spread(len(order), batch)]
    longest = order[::-1][:batch]
    return [int(row) for rows in (longest, usual) * 2 for row in np.resize(rows, batch)]


def few_images(
    recipe: Recipe, whole: DatasetDict, tokenizer: PreTrainedTokenizerBase, batch: int
) -> tuple[DatasetDict, int]:
    """What a dry run trains on and captions, out of `whole`; and how many images it decoded to see that they can be.

    `batch`: captions of a step. One image that cannot be decoded is left out with a warning, as it is in a run: of
    so few it may be above `max_broken`, and still below it in all.
    """
    data, looked_at = DatasetDict(), 0
    grouped = recipe.training.train_sampling_strategy == "group_by_length"
    with recipe.training.main_process_first(desc="decoding"):
        for split, rows in whole.items():
            chosen = {*spread(len(rows)), *rehearsal_rows(caption_lengths(tokenizer, rows["caption"]), batch, grouped)}
            looked_at += len(chosen)
            data[split] = check_images(rows.select(sorted(chosen)), max(recipe.data.max_broken, 1 / len(chosen)))
    lengths = caption_lengths(tokenizer, data["train"]["caption"])
    data["train"] = data["train"].select(rehearsal_rows(lengths, batch, grouped))
    captioned = recipe.training.eval_batch_size * recipe.training.world_size
    data["valid"] = data["valid"].select(range(min(captioned, len(data["valid"]))))
    return data, looked_at


@contextmanager
def rehearsal(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe of the miniature: one epoch of the rows it is given, evaluated and saved, reported to nobody.

    Its folder lies on the disk of `output_dir`, is the same for all processes, and is removed at the end.
    """
    with _folder(recipe.training) as folder:
        args = copy.copy(recipe.training)
        args.output_dir, args.disable_tqdm = str(folder / "run"), True
        args.report_to = []  # type: ignore[assignment]
        args.num_train_epochs, args.max_steps, args.eval_delay = 1, -1, 0
        args.train_sampling_strategy = "sequential"
        args.eval_strategy = args.save_strategy = IntervalStrategy.EPOCH
        kept = recipe.model.feature_cache if recipe.model.feature_cache == "off" else str(folder / "features")
        yield dataclasses.replace(
            recipe, training=args, model=dataclasses.replace(recipe.model, feature_cache=kept), given=frozenset()
        )


@contextmanager
def _folder(args: Seq2SeqTrainingArguments) -> Iterator[Path]:
    names = [""]
    if args.process_index == 0:
        names = [tempfile.mkdtemp(prefix=".medcap-dry-run-", dir=existing(Path(args.output_dir)))]
    broadcast_object_list(names)
    try:
        yield Path(names[0])
    finally:
        if args.process_index == 0:
            shutil.rmtree(names[0], ignore_errors=True)


def check_reporters(args: Seq2SeqTrainingArguments) -> None:
    """Raise RuntimeError when what `report_to` names is not installed."""
    for callback in get_reporting_integration_callbacks(args.report_to):
        callback()


class Clock(TrainerCallback):
    """Seconds from the end of a step to the end of the next, and of the evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluation = 0.0
        self.last = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.append(self._since())

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.evaluation = self._since()

    def measured(self, captioned: int) -> Measured:
        """What the plan goes by; the first step also warms up, and its captions are the longest."""
        return Measured(self.steps[1], self.steps[3], self.evaluation, captioned)

    def _since(self) -> float:
        before, self.last = self.last, time.monotonic()
        return self.last - before
