"""Whether a training is well: how fast it goes, what it waits for, how long it will take, and whether it learns.

The figures go to the log, and so to whatever `report_to` names, and to metrics.jsonl. Nothing here waits for a GPU:
what lies there is read when the Trainer reads the loss, every `logging_steps`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

STARVING = 0.3  # share of the time: more of it waiting for images is said
FEW_STEPS = 20  # over fewer steps, the start of the loader is most of what is measured
ENOUGH_CAPTIONS = 5000  # whose words are counted: more of them move the entropy by a few hundredths


def token_entropy(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], max_caption_tokens: int) -> float:
    """The loss at chance, in nats a token: that of saying each token as often as the captions do, whatever is asked.

    It is the entropy of the tokens that are learned, [SEP] included (Shannon, 1948, section 6), and the least that is
    reached without looking at the picture or at the words before. Of up to ENOUGH_CAPTIONS captions, evenly spread.
    """
    few = list(captions[:: math.ceil(len(captions) / ENOUGH_CAPTIONS)])
    cut = tokenizer(few, truncation=True, max_length=max_caption_tokens)["input_ids"]
    counts = Counter(token for ids in cut for token in ids[1:])  # the first token is given
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


@dataclass
class ThroughputMeter:
    """What was done since it was new: by all processes but for `waited` and `seconds`, which are of this one."""

    steps: int = 0
    images: int = 0
    tokens: torch.Tensor | int = 0  # that are learned; on the device, until somebody wants to know
    waited: float = 0.0
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Rates per second of training, without evaluations and checkpoints; the share of it waiting for images."""
        if self.seconds == 0:
            return {}
        return {
            "images_per_second": self.images / self.seconds,
            "tokens_per_second": float(self.tokens) / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }


class TrainingMonitor(TrainerCallback):
    """Measures a training, and warns of what will not get better by itself: each once, in a line that says what to do.

    `chance`: the loss of a model that learned nothing but how frequent tokens are, from `token_entropy`.
    """

    def __init__(self, chance: float | None = None) -> None:
        self.chance = chance
        self.since_log, self.since_evaluation = ThroughputMeter(), ThroughputMeter()
        self.began = self.mark = time.perf_counter()
        self.began_at_step, self.earlier = 0, 0.0
        self.said: set[str] = set()

    # --- measuring ---

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, and note how long each let us wait."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            waited = time.perf_counter() - asked
            for meter in (self.since_log, self.since_evaluation):
                meter.waited += waited
            yield batch

    def count(self, images: int, tokens: torch.Tensor | int) -> None:
        """One step has `images` and `tokens` to learn from."""
        for meter in (self.since_log, self.since_evaluation):
            meter.steps += 1
            meter.images += images
            meter.tokens = meter.tokens + tokens

    def log_figures(self, state: TrainerState) -> dict[str, float]:
        """What a line of the log says beside the loss; measured since the last one."""
        self._lap()
        figures = {**self.since_log.figures(), **self._now(state)}
        self.since_log = ThroughputMeter()
        return figures

    def evaluation_figures(self, state: TrainerState) -> dict[str, float]:
        """What metrics.jsonl says beside the scores; measured since the last evaluation."""
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
        """How long training has taken, evaluations and checkpoints included, and what led to the checkpoint."""
        return self.earlier + time.perf_counter() - self.began

    def _lap(self, trains: bool = True) -> None:
        """Count the time since the last lap as training, or leave it out."""
        now = time.perf_counter()
        for meter in (self.since_log, self.since_evaluation):
            meter.seconds += (now - self.mark) * trains
        self.mark = now

    # --- events ---

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, where a resumed run left it in its log."""
        self.began = self.mark = time.perf_counter()
        self.began_at_step, self.earlier = state.global_step, 0.0
        for line in state.log_history:
            self.earlier = line.get("training_seconds", self.earlier + line.get("eval_runtime", 0.0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._lap()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._lap(trains=False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._warn_of_waiting(args.dataloader_num_workers)
        losses = [line["loss"] for line in state.log_history if "loss" in line]
        if args.eval_strategy == "no" and losses:
            self._warn_of_chance("training", losses[-1], state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._lap(trains=False)
        self.since_evaluation = ThroughputMeter()
        if metrics and (state.epoch or 0) >= 1:
            self._warn_of_chance("validation", metrics["eval_loss"], state)

    # --- warnings ---

    def _warn_of_waiting(self, workers: int) -> None:
        meter = self.since_evaluation
        share = meter.figures().get("data_wait_share", 0.0)
        if meter.steps >= FEW_STEPS and share > STARVING:
            self._say_once(
                "waiting",
                f"training waits for images {share:.0%} of the time (more than {STARVING:.0%}): raise "
                f"dataloader_num_workers, now {workers}, and leave feature_cache on where it can be",
            )

    def _warn_of_chance(self, kind: str, loss: float, state: TrainerState) -> None:
        if self.chance is not None and loss >= self.chance:
            self._say_once(
                "chance",
                f"after epoch {state.epoch:g} the {kind} loss is {loss:.2f}, no better than chance: {self.chance:.2f} "
                "is reached by saying each token as often as training captions do, without picture or words. Raise "
                "learning_rate, take more of lora_target_modules, or look whether captions go with their pictures",
            )

    def _say_once(self, what: str, text: str) -> None:
        if what not in self.said:
            logger.warning(text)
        self.said.add(what)
