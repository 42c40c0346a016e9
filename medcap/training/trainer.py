"""CaptionTrainer: the Trainer with the loss, the generation and the memory that BLIP needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import EvalPrediction, GenerationConfig
from transformers.trainer_utils import EvalLoopOutput

from medcap.data.captions import IGNORED
from medcap.modeling.beam_search import generate_ids
from medcap.modeling.blip import prompt_ids
from medcap.modeling.feature_cache import FeatureCache, FeatureEncoder
from medcap.training.callbacks import FiniteGradients
from medcap.training.micro_batches import TOGETHER, Batch, Gradients, average_gradients, is_out_of_memory, split_batch
from medcap.training.monitors import TrainingMonitor
from medcap.training.resumable_trainer import ResumableTrainer


class CaptionTrainer(ResumableTrainer):
    """Train and evaluate a BLIP captioner on batches of `CaptionCollator`.

    Evaluation hands to `compute_metrics` the generated ids (n, T) and, as `label_ids`, the row numbers (n,) that the
    batches carry in `row`: so every prediction is scored against its own, whole reference, in whatever order and on
    however many processes it was made. Logits and pixels are not kept. `compute_metrics` is called on the main process
    alone, and every process is told what it said.
    """

    def __init__(
        self,
        *args: Any,
        generation_config: GenerationConfig,
        prompt: str = "",
        features: FeatureCache | None = None,
        monitor: TrainingMonitor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        """`generation_config`: from `medcap.modeling.blip.make_generation_config`; `prompt`: their given start.

        `features`: where those of the tower are kept; the data sets then give the digest of each image. `monitor`
        measures throughput for the log.
        """
        self.scores = compute_metrics
        once = None if compute_metrics is None else self._score_once
        super().__init__(*args, compute_metrics=once, **kwargs)
        self.generation_config, self.prompt = generation_config, prompt
        self.rows_at_a_time: int | None = None  # of a micro-batch; None: all of them
        self.rows_of_step: list[int] = []  # that this process has taken since the last change of the weights
        blip = self.model.get_base_model()
        self.encoder = FeatureEncoder(blip.vision_model, features)
        self.tower_learns = any(weight.requires_grad for weight in blip.vision_model.parameters())
        blip.text_decoder.label_smoothing = self.args.label_smoothing_factor  # of shifted labels, in training alone
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the labels of all micro-batches and processes
        self.loss_is_scaled_for_ga = True  # and compute_loss divides by that count: nothing is divided again
        self.monitor = monitor or TrainingMonitor()
        self.add_callback(self.monitor)  # after those that read what it has measured
        self.add_callback(FiniteGradients(self))
        self._evaluated: list[torch.Tensor] = []  # of each batch of an evaluation: summed loss, labels

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """The micro-batches of one step of this process, and how many labels those of all processes have."""
        batches = map(self._without_repeats, self.monitor.time_batches(epoch_iterator))
        found, labels = super().get_batch_samples(batches, num_batches, device)
        self.monitor.count_step(self._rows(found), 0 if labels is None else labels)
        return found, labels

    def _rows(self, batches: list[dict[str, torch.Tensor]]) -> int:
        """How many rows the micro-batches of one step have on all processes, repeated ones left out."""
        rows = sum(len(batch["labels"]) for batch in batches) * self.args.world_size
        loader = self.accelerator.gradient_state
        if loader.end_of_dataloader and loader.remainder > 0:
            rows -= len(batches[-1]["labels"]) * self.args.world_size - loader.remainder
        return rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A line of the log, with the throughput beside its loss."""
        super().log({**logs, **self.monitor.log_figures(self.state)} if "loss" in logs else logs, start_time)

    def _without_repeats(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the labels off rows that are there for the second time.

        Where the processes cannot share the last batch of a data set evenly, accelerate fills it up with the first
        rows: to be counted twice by who knows nothing of it. They stand behind the `remainder` rows of all processes.
        """
        loader = self.accelerator.gradient_state
        if loader.end_of_dataloader and loader.remainder > 0:
            before = self.args.process_index * len(batch["labels"])
            batch["labels"][max(loader.remainder - before, 0) :] = IGNORED
        return batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy summed over labels, divided by the labels of the whole step (scalar float32).

        BLIP divides by the labels of the micro-batch, while its `**kwargs` make the Trainer believe that it divides
        by `num_items_in_batch`: 2 x 4 would give four times the loss and gradient of 8 x 1 (transformers#47688).
        """
        pictures = inputs["pixel_values"] if self.tower_learns and model.training else self._features(inputs)
        loss, outputs = self._loss(model, pictures, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _loss(
        self,
        model: nn.Module,
        pictures: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> tuple[torch.Tensor, Any]:
        outputs = model(
            pixel_values=pictures,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
        )
        loss = outputs.loss.float()
        if num_items_in_batch is not None:
            loss = loss * (inputs["labels"][:, 1:].ne(IGNORED).sum() / num_items_in_batch)
            if self.args.average_tokens_across_devices:  # the gradients are averaged over processes, and were summed
                loss = loss * self.accelerator.num_processes
        return loss, outputs

    def _features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.encoder(inputs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward, in parts of half its size or less where it does not fit into memory.

        The loss is a sum over labels, so that parts add up to the gradient of the whole. How many rows fit is
        remembered for the steps to come. Raises MemoryError where not even one does, and FloatingPointError before
        weights are updated with a nan.
        """
        self.rows_of_step += inputs["row"].tolist()
        rows, before = len(inputs["labels"]), Gradients(model)
        size = min(self.rows_at_a_time or rows, rows)
        while (loss := self._in_parts(model, inputs, num_items_in_batch, size)) is None:
            before.restore()
            size = self.rows_at_a_time = self._fewer(size)
        if isinstance(model, DistributedDataParallel) and self.accelerator.sync_gradients:
            average_gradients(model)
        return loss

    def _in_parts(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None, size: int
    ) -> torch.Tensor | None:
        """The summed loss of parts of `size` rows, their gradients added; None where one does not fit into memory.

        Each process splits for itself, so no part may wait for another process: gradients are averaged afterwards.
        """
        apart = model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
        losses = []
        try:
            with apart, disable_input_dtype_casting(self.model):  # autocast does it, and not to float32 first
                for part in split_batch(inputs, size):
                    losses.append(super().training_step(model, part, num_items_in_batch))
                    if not torch.isfinite(losses[-1]):
                        self.stop_non_finite(f"the loss became {losses[-1].item()}", part["row"].tolist())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.accelerator.distributed_type in TOGETHER:
                raise
            return None
        return torch.stack(losses).sum()

    def _fewer(self, size: int) -> int:
        """How many rows to try after `size` did not fit; the device's memory is tidied up."""
        clear_device_cache(garbage_collection=True)
        step = self.state.global_step + 1
        if size == 1:
            raise MemoryError(
                f"not even one image at a time fits into memory at step {step}: lower image_size or "
                "max_caption_tokens, or set gradient_checkpointing: true or quantization: 4bit"
            )
        half = (size + 1) // 2
        tqdm.write(
            f"step {step}: {size} images at a time do not fit into memory; going on with {half} at a time and "
            "accumulating more of them: the steps stay the same",
            sys.stderr,
        )
        return half

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's, but `loss` is the mean over all labels, on whatever batches and however many processes.

        The Trainer's is a mean of batches' means: it moves with the size of the batches, and counts repeated rows.
        """
        self._evaluated = []
        self.encoder.flush()  # what training or this evaluation saw first need never be encoded again
        self.gather_function = self.accelerator.gather_for_metrics  # Seq2SeqTrainer's keeps the repeated rows
        evaluated = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.encoder.flush()
        loss, labels = self.accelerator.reduce(torch.stack(self._evaluated).sum(0), "sum")
        evaluated.metrics[f"{metric_key_prefix}_loss"] = (loss / labels).item()
        return evaluated

    def _score_once(self, evaluated: EvalPrediction) -> dict[str, float]:
        """What the main process scored, on every process: so all choose the same best epoch and stop at the same."""
        metrics = [self.scores(evaluated) if self.scores and self.is_world_process_zero() else None]
        return broadcast_object_list(metrics)[0]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss (scalar), generated ids (B, T) and row numbers (B,) of one batch.

        The captions come from the pixels alone: `Seq2SeqTrainer` would hand `input_ids`, the reference, to `generate`
        as the beginning of the caption.
        """
        inputs = self._without_repeats(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            features = self._features(inputs)
            loss = self._loss(model, features, inputs)[0].detach()
            labels = inputs["labels"].ne(IGNORED).sum()
            self._evaluated.append(torch.stack([loss * labels, labels]))
            if prediction_loss_only:
                return loss, None, None
            ids = self._generate(features)
        return loss, ids, inputs["row"]

    def _generate(self, features: torch.Tensor) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        given = prompt_ids(model, self.processing_class.tokenizer, self.prompt, len(features))
        with self.accelerator.autocast():
            return generate_ids(model.text_decoder, features, self.generation_config, given)
