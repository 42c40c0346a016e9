"""Monitor a training: throughput, time waiting for data, time left, and whether the loss is better than chance.

The figures go to the log, so to every integration in `report_to`, and to metrics.jsonl. Nothing here synchronizes with
a GPU: counts on the device are read when the Trainer reads the loss, every `logging_steps`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

MAX_DATA_WAIT = 0.3  # fraction of the time; a warning above it
MIN_STEPS = 20  # over fewer steps, the start of the data loader dominates the measurement


@dataclass
class ThroughputMeter:
    """Counts over all processes, except `waited` and `seconds`, which are of this one."""

    steps: int = 0
    images: int = 0
    tokens: torch.Tensor | int = 0  # labels; stays on the device until `figures`
    waited: float = 0.0
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return rates per second of training, without evaluations and checkpoints, and the fraction of waiting."""
        if self.seconds == 0:
            return {}
        return {
            "images_per_second": self.images / self.seconds,
            "tokens_per_second": float(self.tokens) / self.seconds,
            "data_wait_fraction": self.waited / self.seconds,
        }


class TrainingMonitor(TrainerCallback):
    """Measures throughput, and warns once of slow data loading and once of a loss at chance.

    `chance` is the loss of a model of token frequencies alone, from `TokenizedCaptions.entropy`.
    """

    def __init__(self, chance: float | None = None) -> None:
        self.chance = chance
        self.since_log, self.since_evaluation = ThroughputMeter(), ThroughputMeter()
        self.began = self.mark = time.perf_counter()
        self.began_at_step, self.earlier = 0, 0.0
        self.warned: set[str] = set()

    def time_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, and record the time spent waiting for each."""
        start = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - start
            for meter in (self.since_log, self.since_evaluation):
                meter.waited += waited
            yield batch
            start = time.perf_counter()

    def count_step(self, images: int, tokens: torch.Tensor | int) -> None:
        """Count one step of `images` images and `tokens` labels."""
        for meter in (self.since_log, self.since_evaluation):
            meter.steps += 1
            meter.images += images
            meter.tokens = meter.tokens + tokens

    def log_figures(self, state: TrainerState) -> dict[str, float]:
        """Return the figures since the last line of the log."""
        self._lap()
        figures = {**self.since_log.figures(), **self._now(state)}
        self.since_log = ThroughputMeter()
        return figures

    def evaluation_figures(self, state: TrainerState) -> dict[str, float]:
        """Return the figures since the last evaluation, with the last gradient norm."""
        norms = [line["grad_norm"] for line in state.log_history if "grad_norm" in line]
        last = {"grad_norm": norms[-1]} if norms else {}
        return {**self.since_evaluation.figures(), **last, **self._now(state)}

    def _now(self, state: TrainerState) -> dict[str, float]:
        figures = {"training_seconds": self.seconds, "memory_gb": psutil.Process().memory_info().rss / 1e9}
        if torch.cuda.is_available():
            figures["cuda_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if done := state.global_step - self.began_at_step:
            left = state.max_steps - state.global_step
            figures["seconds_left"] = (time.perf_counter() - self.began) / done * left
        return figures

    @property
    def seconds(self) -> float:
        """Return the duration of the training: evaluations, checkpoints and the work before a resume included."""
        return self.earlier + time.perf_counter() - self.began

    def _lap(self, is_training: bool = True) -> None:
        """Add the time since the last lap if it was spent on training."""
        now = time.perf_counter()
        for meter in (self.since_log, self.since_evaluation):
            meter.seconds += (now - self.mark) * is_training
        self.mark = now

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock, or continue that of a resumed run from its log."""
        self.began = self.mark = time.perf_counter()
        self.began_at_step, self.earlier = state.global_step, 0.0
        for line in state.log_history:
            self.earlier = line.get("training_seconds", self.earlier + line.get("eval_runtime", 0.0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._lap()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._lap(is_training=False)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._warn_of_data_wait(args.dataloader_num_workers)
        losses = [line["loss"] for line in state.log_history if "loss" in line]
        if args.eval_strategy == "no" and losses:
            self._warn_of_chance("training", losses[-1], state)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._lap(is_training=False)
        self.since_evaluation = ThroughputMeter()
        if metrics and (state.epoch or 0) >= 1:
            self._warn_of_chance("validation", metrics["eval_loss"], state)

    def _warn_of_data_wait(self, workers: int) -> None:
        meter = self.since_evaluation
        fraction = meter.figures().get("data_wait_fraction", 0.0)
        if meter.steps >= MIN_STEPS and fraction > MAX_DATA_WAIT:
            self._warn_once(
                "data wait",
                f"training waits for images {fraction:.0%} of the time (more than {MAX_DATA_WAIT:.0%}): raise "
                f"dataloader_num_workers, now {workers}, and use feature_cache where possible",
            )

    def _warn_of_chance(self, kind: str, loss: float, state: TrainerState) -> None:
        if self.chance is not None and loss >= self.chance:
            self._warn_once(
                "chance",
                f"after epoch {state.epoch:g} the {kind} loss is {loss:.2f}, no better than chance: a model of "
                f"token frequencies alone has {self.chance:.2f}. Raise learning_rate, adapt more lora_target_modules, "
                "or check that captions belong to their images",
            )

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            logger.warning(text)
        self.warned.add(kind)
