"""What a run shows and writes while it trains: one progress bar, metrics.jsonl, and what it says of a few images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medcap.io import write_text
from medcap.training.monitors import TrainingMonitor

METRICS_SHOWN = ("eval_loss", "eval_bleu_1", "eval_bleu_4", "eval_rouge_l", "eval_cider")


class Progress(TrainerCallback):
    """One bar for the whole training, with rate, time left and loss, and a line for each evaluation; on stderr."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.evaluating: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(epoch=f"{state.epoch:.1f}/{state.num_train_epochs:g}", loss=f"{logs['loss']:.3f}")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or args.disable_tqdm:
            return
        if self.evaluating is None:
            self.evaluating = tqdm(total=len(eval_dataloader), desc="captions", unit="batch", leave=False)
        self.evaluating.update()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.evaluating is not None:
            self.evaluating.close()
            self.evaluating = None
        if self.bar is not None and metrics:
            shown = [f"{name.removeprefix('eval_')} {metrics[name]:.4f}" for name in METRICS_SHOWN if name in metrics]
            tqdm.write(f"epoch {state.epoch:g}: {', '.join(shown)}", file=self.bar.fp)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


class MetricsLog(TrainerCallback):
    """`metrics.jsonl`: one line per evaluation, with the last training loss and the `health` until then beside it."""

    def __init__(self, run: Path, health: TrainingMonitor) -> None:
        self.path, self.health = run / "metrics.jsonl", health

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget evaluations after the checkpoint: they will be made again."""
        if state.is_world_process_zero and self.path.exists():
            self._write(self._until(state.global_step))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or metrics is None:
            return
        losses = [line["loss"] for line in state.log_history if "loss" in line]
        line = {"epoch": state.epoch, "step": state.global_step, "loss": losses[-1] if losses else None, **metrics}
        line["health"] = self.health.evaluation_figures(state)
        self._write([*self._until(state.global_step - 1), json.dumps(line)])

    def _until(self, step: int) -> list[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [text for text in lines if json.loads(text)["step"] <= step]

    def _write(self, lines: list[str]) -> None:
        write_text(self.path, "".join(f"{text}\n" for text in lines))


class StepSeed(TrainerCallback):
    """The random numbers of a step (dropout) depend on seed and step alone.

    So a run that goes on draws those of the run that was never stopped, whatever was drawn meanwhile: an epoch that
    begins with workers takes a number, a resumed one takes it too, and one whose workers are still there does not.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.manual_seed(args.seed * 1_000_003 + state.global_step)


class HasPredictions(Protocol):
    """What scored the last evaluation, and still holds its captions."""

    predictions: list[str]


class Samples(TrainerCallback):
    """`samples/epoch-N.md`: what the model says of the same few images after each epoch.

    `draw(path, predictions)` makes the same as a picture, epoch-N.png.
    """

    def __init__(
        self,
        run: Path,
        ids: list[str],
        references: list[str],
        scores: HasPredictions,
        draw: Callable[[Path, list[str]], None],
    ) -> None:
        self.folder, self.ids, self.references = run / "samples", ids, references
        self.scores, self.draw = scores, draw

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget epochs after the checkpoint, which will be trained again."""
        if state.is_world_process_zero:
            for path in self.folder.glob("epoch-*"):
                if int(path.stem.rpartition("-")[2]) > math.ceil(state.epoch or 0):
                    path.unlink()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        rows = zip(self.ids, self.references, self.scores.predictions, strict=False)
        blocks = [f"**{image_id}**\n- reference: {said}\n- prediction: {made}\n" for image_id, said, made in rows]
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"epoch-{math.ceil(state.epoch or 0)}.md"
        write_text(path, "\n".join([f"# After epoch {state.epoch:g}\n", *blocks]))
        self.draw(path.with_suffix(".png"), self.scores.predictions[: len(self.ids)])
