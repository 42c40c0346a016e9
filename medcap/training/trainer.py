"""CaptionTrainer: `Seq2SeqTrainer` with the loss, the generation and the memory that BLIP needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import GenerationConfig, Seq2SeqTrainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from medcap.data.captions import IGNORED
from medcap.modeling.blip import prompt_ids
from medcap.modeling.features import Encoder, FeatureCache
from medcap.modeling.generation import generate_ids
from medcap.quiet import named_errors
from medcap.training.sampler import LengthSampler


class CaptionTrainer(Seq2SeqTrainer):
    """Train and evaluate a BLIP captioner on batches of `CaptionCollator`.

    Evaluation hands to `compute_metrics` the generated ids (n, T) and, as `label_ids`, the row numbers (n,) that the
    batches carry in `row`: so every prediction is scored against its own, whole reference, in whatever order and on
    however many processes it was made. Logits and pixels are not kept.
    """

    def __init__(
        self,
        *args: Any,
        captions: GenerationConfig,
        prompt: str = "",
        features: FeatureCache | None = None,
        **kwargs: Any,
    ) -> None:
        """`captions`: how to generate, from `medcap.modeling.blip.generation_config`; `prompt`: their given start.

        `features`: where those of the tower are kept; the data sets then give the digest of each image.
        """
        super().__init__(*args, **kwargs)
        self.captions, self.prompt = captions, prompt
        blip = self.model.get_base_model()
        self.encoder = Encoder(blip.vision_model, features)
        self.tower_learns = any(weight.requires_grad for weight in blip.vision_model.parameters())
        blip.text_decoder.label_smoothing = self.args.label_smoothing_factor  # of shifted labels, in training alone
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the labels of all micro-batches and processes
        self.loss_is_scaled_for_ga = True  # and compute_loss divides by that count: nothing is divided again

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = (self.train_dataset if train_dataset is None else train_dataset)[self.args.length_column_name]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthSampler(lengths, batch_size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)  # the Trainer's own would read every image to learn of lengths

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with named_errors(resume_from_checkpoint):
            TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))  # read again, unnamed
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with named_errors(checkpoint):  # the Trainer unpickles no more than weights, and says how one might
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with named_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; raises FloatingPointError before weights are updated with a nan."""
        with disable_input_dtype_casting(self.model):  # autocast does it, and not to float32 first
            loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}, and no weight was changed; "
                "lower learning_rate, or go on from the last checkpoint with resume_from_checkpoint: last"
            )
        return loss

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
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            features = self._features(inputs)
            loss = self._loss(model, features, inputs)[0].detach()
            if prediction_loss_only:
                return loss, None, None
            ids = self._generate(features)
        return loss, ids, inputs["row"]

    def _generate(self, features: torch.Tensor) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        given = prompt_ids(model, self.processing_class.tokenizer, self.prompt, len(features))
        with self.accelerator.autocast():
            return generate_ids(model.text_decoder, features, self.captions, given)
