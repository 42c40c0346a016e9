"""Callbacks of a run: progress bar, metrics.jsonl, sample captions, resuming, and a check of the gradients."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from medcap.data.augmentation import Augmentation
from medcap.io import write_text
from medcap.markdown import escape
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.monitors import TrainingMonitor

if TYPE_CHECKING:
    from medcap.training.resumable_trainer import ResumableTrainer
    from medcap.training.trainer import CaptionTrainer

METRICS_SHOWN = ("eval_loss", "eval_bleu_1", "eval_bleu_4", "eval_rouge_l", "eval_cider")


class Progress(TrainerCallback):
    """Shows a progress bar with rate, time left and loss, and a line for each evaluation, on stderr."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.evaluation_bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(epoch=f"{state.epoch:.1f}/{state.num_train_epochs:g}", loss=f"{logs['loss']:.3f}")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or args.disable_tqdm:
            return
        if self.evaluation_bar is None:
            self.evaluation_bar = tqdm(total=len(eval_dataloader), desc="captions", unit="batch", leave=False)
        self.evaluation_bar.update()

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.evaluation_bar is not None:
            self.evaluation_bar.close()
            self.evaluation_bar = None
        if self.bar is not None and metrics:
            shown = [f"{name.removeprefix('eval_')} {metrics[name]:.4f}" for name in METRICS_SHOWN if name in metrics]
            tqdm.write(f"epoch {state.epoch:g}: {', '.join(shown)}", file=self.bar.fp)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class JsonLines(TrainerCallback):
    """Writes a file with one JSON object per line, each with its "step"; the main process does."""

    path: Path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the lines of steps after the checkpoint, which are repeated."""
        if state.is_world_process_zero and self.path.exists():
            self._write(self._lines_until(state.global_step))

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines with ascending steps; they replace those of the file from their first step on."""
        if lines:
            self._write([*self._lines_until(lines[0]["step"] - 1), *map(json.dumps, lines)])

    def _lines_until(self, step: int) -> list[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [text for text in lines if json.loads(text)["step"] <= step]

    def _write(self, lines: list[str]) -> None:
        write_text(self.path, "".join(f"{text}\n" for text in lines))


class MetricsLog(JsonLines):
    """Writes `metrics.jsonl`: one line per evaluation, with the last training loss and the throughput before it."""

    def __init__(self, run: Path, monitor: TrainingMonitor) -> None:
        self.path, self.monitor = run / "metrics.jsonl", monitor

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or metrics is None:
            return
        losses = [line["loss"] for line in state.log_history if "loss" in line]
        line = {"epoch": state.epoch, "step": state.global_step, "loss": losses[-1] if losses else None, **metrics}
        line["throughput"] = self.monitor.evaluation_figures(state)
        self.add([line])


class ResumeCallback(TrainerCallback):
    """Restores a resumed run, and makes the random numbers of a step depend only on seed and step.

    A resumed run then has the dropout of an uninterrupted one, although its data loader drew other random numbers.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_run()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.has_loaded = True
        torch.manual_seed(args.seed * 1_000_003 + state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove old checkpoints of a run that was killed after its last one."""
        self.trainer.remove_superseded()


class EpochViews(TrainerCallback):
    """Sets the epoch whose views of the training images are read, in a resumed run too."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.augmentation.epoch = int(state.epoch or 0)


class FiniteGradients(TrainerCallback):
    """Stops before an update with gradients that are not finite; in float16 the scaler skips such a step."""

    def __init__(self, trainer: CaptionTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        rows, self.trainer.rows_of_step = self.trainer.rows_of_step, []
        if self.trainer.accelerator.scaler is None and not math.isfinite(norm := _gradient_norm(self.trainer.model)):
            self.trainer.stop_non_finite(f"the norm of the gradients became {norm}", rows)


def _gradient_norm(model: nn.Module) -> float:
    norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


Draw = Callable[[Path, Dataset, Mapping[str, Sequence[str]]], None]


class Samples(TrainerCallback):
    """Writes `samples/epoch-N.md`: predictions for the same few images after each epoch.

    `draw(path, images, columns)` draws epoch-N.png: the images, each with its text of every column.
    """

    def __init__(self, run: Path, images: Dataset, scores: CaptionMetrics, draw: Draw) -> None:
        self.folder, self.images, self.scores, self.draw = run / "samples", images, scores, draw

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the samples of epochs after the checkpoint, which are repeated."""
        if state.is_world_process_zero:
            for path in self.folder.glob("epoch-*"):
                if int(path.stem.rpartition("-")[2]) > math.ceil(state.epoch or 0):
                    path.unlink()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        ids, references = list(self.images["image_id"]), list(self.images["caption"])
        predictions = self.scores.predictions[: len(ids)]
        blocks = [
            f"**{escape(image_id)}**\n- reference: {escape(reference)}\n- prediction: {escape(prediction)}\n"
            for image_id, reference, prediction in zip(ids, references, predictions, strict=True)
        ]
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"epoch-{math.ceil(state.epoch or 0)}.md"
        write_text(path, "\n".join([f"# After epoch {state.epoch:g}\n", *blocks]))
        self.draw(path.with_suffix(".png"), self.images, {"reference": references, "prediction": predictions})


def read_samples(run: Path) -> dict[int, list[tuple[str, str, str]]]:
    """Return id, reference and prediction of the images in `samples/`, by epoch."""
    block = re.compile(r"^\*\*(.*)\*\*\n- reference: (.*)\n- prediction: (.*)$", re.MULTILINE)
    paths = {int(path.stem.rpartition("-")[2]): path for path in (run / "samples").glob("epoch-*.md")}
    return {
        epoch: [
            (html.unescape(image_id), html.unescape(reference), html.unescape(prediction))
            for image_id, reference, prediction in block.findall(paths[epoch].read_text(encoding="utf-8"))
        ]
        for epoch in sorted(paths)
    }
