"""CaptionTrainer: Trainer with captions' loss, generation, cached features and automatic micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import EvalPrediction, GenerationConfig
from transformers.trainer_utils import EvalLoopOutput

from medcap.data.captions import IGNORED
from medcap.modeling.families import family_of
from medcap.modeling.feature_cache import FeatureEncoder, trains_features
from medcap.modeling.feature_store import FeatureCache
from medcap.modeling.lora import base_model
from medcap.training.callbacks import FiniteGradients
from medcap.training.lora_plus import raise_lora_b
from medcap.training.micro_batches import Batch, Gradients, average_gradients, is_out_of_memory, split_batch
from medcap.training.monitors import TrainingMonitor
from medcap.training.resumable_trainer import ResumableTrainer
from medcap.training.rows import CaptionRows, SourceSampler
from medcap.training.sharding import SHARDED, call_within

Count = torch.Tensor | int | None  # labels of a step on all processes


class CaptionTrainer(ResumableTrainer):
    """Train and evaluate a captioner of any family on batches of `Family.collator`, such as `CaptionCollator`.

    Data sets are sequences of {"pixel_values", "caption"} and optionally "image_id"; the model may be a PEFT model or
    a plain model of transformers. BLIP is changed in place by `prepare_blip`.

    `compute_metrics` gets the generated ids (n, T) and, as `label_ids`, row numbers (n,), so that every prediction is
    scored against its complete reference whatever the order and number of processes. Logits and pixels are not
    stored. It is called on the main process, and its result is broadcast.
    """

    rows_per_image = 1  # of a micro-batch in training

    def __init__(
        self,
        *args: Any,
        generation_config: GenerationConfig,
        prompt: str = "",
        features: FeatureCache | None = None,
        monitor: TrainingMonitor | None = None,
        lora_lr_ratio: float = 1.0,
        sampler: SourceSampler | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the trainer.

        Args:
            *args: As for `Seq2SeqTrainer`.
            generation_config: From `Family.make_generation_config`.
            prompt: Text that every caption continues.
            features: Feature cache; rows then have a "digest" (see `medcap.data.images.ImageTransform`).
            monitor: Measures throughput; its figures are logged.
            lora_lr_ratio: Learning rate of LoRA's B matrices divided by `learning_rate`.
            sampler: Rows of each epoch of training; None for all of them.
            compute_metrics: Scores generated ids, see above.
            **kwargs: As for `Seq2SeqTrainer`.
        """
        self.scores = compute_metrics
        once = None if compute_metrics is None else self._score_once
        super().__init__(*args, compute_metrics=once, **kwargs)
        self.generation_config, self.prompt, self.lora_lr_ratio = generation_config, prompt, lora_lr_ratio
        self.rows_at_a_time: int | None = None  # of a micro-batch; None: all of them
        self.rows_of_step: list[int] = []  # of this process, since the last optimizer step
        self.family = family_of(base_model(self.model), self.processing_class)
        self.family.prepare(None, "plain")
        self.family.is_sharded = self.accelerator.distributed_type in SHARDED
        if self.train_dataset is not None:
            self.train_dataset: Any = self._numbered(self.train_dataset)
        if sampler is not None:
            self.sampler, rows = sampler, cast(Any, self.train_dataset)
            rows.total_dataset_length = len(sampler)  # by which accelerate counts what repeats in the last batch
        self.encoder = FeatureEncoder(self.family, features)
        self.takes_features = not self.family.feature_obstacle()
        self.trains_vision_encoder = self.takes_features and trains_features(self.family)
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the labels of all micro-batches and processes
        self.loss_is_scaled_for_ga = True  # the loss is divided by that count, and not again
        self.monitor = monitor or TrainingMonitor()
        self.add_callback(self.monitor)  # after the callbacks that read its figures
        self.add_callback(FiniteGradients(self))
        self._evaluated: list[torch.Tensor] = []  # per batch of an evaluation: summed loss, labels

    @property
    def has_partial_logits(self) -> bool:
        """Whether the loss needs the logits of a part of the tokens at a time."""
        return self.family.has_partial_logits

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """Return all weights of a sharded model, on the main process; None if it is not sharded.

        All processes must call this.
        """
        return self.accelerator.get_state_dict(self.model_wrapped) if self.family.is_sharded else None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, with the learning rate of B matrices that `lora_lr_ratio` gives."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.lora_lr_ratio != 1:
            raise_lora_b(optimizer, self.model if model is None else model, self.lora_lr_ratio)
        return optimizer

    def _numbered(self, dataset: Any) -> CaptionRows:
        return CaptionRows(dataset, partial(self.family.tokenized, prompt=self.prompt), self.args.length_column_name)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the Trainer's loader of numbered rows."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._all_rows():
            return super().get_eval_dataloader(self._numbered(dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the Trainer's loader of numbered rows."""
        with self._all_rows():
            return super().get_test_dataloader(self._numbered(test_dataset))

    @contextmanager
    def _all_rows(self) -> Iterator[None]:
        """Let `dataloader_drop_last` apply to training only: the Trainer would leave rows out of evaluations."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Count]:
        """Return the micro-batches of one step of this process, and the number of labels on all processes."""
        batches = map(self._without_repeats, self.monitor.time_batches(epoch_iterator))
        samples, labels = super().get_batch_samples(batches, num_batches, device)
        self.monitor.count_step(self._rows(samples), 0 if labels is None else labels)
        return samples, labels

    def _rows(self, batches: list[Batch]) -> int:
        """Count the rows of one step on all processes, without repeated ones."""
        rows = sum(len(batch["labels"]) for batch in batches) * self.args.world_size
        loader = self.accelerator.gradient_state
        if loader.end_of_dataloader and loader.remainder > 0:
            rows -= len(batches[-1]["labels"]) * self.args.world_size - loader.remainder
        return rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, with the monitor's figures if there is a loss."""
        super().log({**logs, **self.monitor.log_figures(self.state)} if "loss" in logs else logs, start_time)

    def _without_repeats(self, batch: Batch) -> Batch:
        """Remove the labels of rows that accelerate repeats to fill the last batch of a data set.

        They come after the `remainder` rows of all processes.
        """
        loader = self.accelerator.gradient_state
        if loader.end_of_dataloader and loader.remainder > 0:
            before = self.args.process_index * len(batch["labels"])
            batch["labels"][max(loader.remainder - before, 0) :] = IGNORED
        return batch

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Count = None
    ) -> Any:
        """Return the summed cross-entropy divided by the labels of the step, or of `inputs` if None (float32 scalar).

        Label smoothing applies in training only.
        """
        features = None if self.trains_vision_encoder and model.training else self._features(inputs)
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss = self.family.loss(model, inputs, features, num_items_in_batch, smoothing)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def _features(self, inputs: Batch) -> torch.Tensor | None:
        if not self.takes_features:
            return None
        with self.accelerator.autocast():
            return call_within(self.model, self.encoder, inputs)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Count = None) -> torch.Tensor:
        """Run one micro-batch forward and backward, in smaller parts if it does not fit into memory.

        The loss is a sum over labels, so the gradients of the parts add up. The size that fits is used for later
        steps. Raises MemoryError when one row does not fit, and FloatingPointError before a nan reaches the weights.
        """
        self.rows_of_step += inputs["row"].tolist()
        rows, before = len(inputs["labels"]), Gradients(model)
        size = min(self.rows_at_a_time or rows, rows)
        while (loss := self._in_parts(model, inputs, num_items_in_batch, size)) is None:
            before.restore()
            size = self.rows_at_a_time = self._smaller(size)
        if isinstance(model, DistributedDataParallel) and self.accelerator.sync_gradients:
            average_gradients(model)
        return loss

    def _in_parts(self, model: nn.Module, inputs: Batch, num_items_in_batch: Count, size: int) -> torch.Tensor | None:
        """Return the summed loss of parts of `size` rows, gradients accumulated; None if one does not fit.

        Processes split independently, so gradients are not synchronized here but averaged afterwards.
        """
        no_sync = model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
        losses = []
        try:
            with no_sync, disable_input_dtype_casting(self.model):  # autocast casts, without float32 first
                for part in split_batch(inputs, size):
                    losses.append(super().training_step(model, part, num_items_in_batch))
                    if not torch.isfinite(losses[-1]):
                        self.stop_non_finite(f"the loss became {losses[-1].item()}", part["row"].tolist())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.family.is_sharded:
                raise
            return None
        return torch.stack(losses).sum()

    def _smaller(self, size: int) -> int:
        """Return the number of rows to try after `size` did not fit; release unused device memory."""
        clear_device_cache(garbage_collection=True)
        step = self.state.global_step + 1
        if size == 1:
            raise MemoryError(
                f"not even one image at a time fits into memory at step {step}: lower image_size or "
                "max_caption_tokens, or set gradient_checkpointing: true or quantization: 4bit"
            )
        half = (size + 1) // 2
        tqdm.write(
            f"step {step}: {size} images at a time do not fit into memory; continuing with {half} at a time and "
            "accumulating more of them: the steps stay the same",
            sys.stderr,
        )
        return half

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the Trainer does, with the loss as the mean over all labels.

        The Trainer's is a mean of batch means: it depends on the batch size and counts repeated rows.
        """
        self._evaluated = []
        self.encoder.flush()  # the evaluation then reads what training has encoded
        self.gather_function = self.accelerator.gather_for_metrics  # Seq2SeqTrainer's does not remove repeated rows
        evaluated = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.encoder.flush()
        loss, labels = self.accelerator.reduce(torch.stack(self._evaluated).sum(0), "sum")
        evaluated.metrics[f"{metric_key_prefix}_loss"] = (loss / labels).item()
        return evaluated

    def _score_once(self, evaluated: EvalPrediction) -> dict[str, float]:
        """Return the main process's scores on every process, so that all choose the same best epoch."""
        metrics = [self.scores(evaluated) if self.scores and self.is_world_process_zero() else None]
        return broadcast_object_list(metrics)[0]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return summed loss (scalar), generated ids (B, T) and row numbers (B,) of one batch.

        Only features are passed to `generate`: `Seq2SeqTrainer` would pass `input_ids`, the reference, as well.
        """
        inputs = self._without_repeats(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            features = self._features(inputs)
            loss = self.family.loss(model, inputs, features, 1).detach()
            self._evaluated.append(torch.stack([loss, inputs["labels"].ne(IGNORED).sum()]))
            if prediction_loss_only:
                return loss, None, None
            ids = self._generate(inputs, features)
        return loss, ids, inputs["row"]

    def _generate(self, inputs: Batch, features: torch.Tensor | None) -> torch.Tensor:
        with self.accelerator.autocast():
            arguments = (inputs, features, self.generation_config, self.prompt)
            return call_within(self.model, self.family.generate, *arguments)
