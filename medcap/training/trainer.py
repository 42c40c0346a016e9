"""CaptionTrainer: `Seq2SeqTrainer` with the loss, the generation and the memory that BLIP needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, Seq2SeqTrainer

from medcap.data.captions import IGNORED
from medcap.modeling.blip import prompt_ids


class CaptionTrainer(Seq2SeqTrainer):
    """Train and evaluate a BLIP captioner on batches of `CaptionCollator`.

    Evaluation hands to `compute_metrics` the generated ids (n, T) and, as `label_ids`, the row numbers (n,) that the
    batches carry in `row`: so every prediction is scored against its own, whole reference, in whatever order and on
    however many processes it was made. Logits and pixels are not kept.
    """

    def __init__(self, *args: Any, captions: GenerationConfig, prompt: str = "", **kwargs: Any) -> None:
        """`captions`: how to generate, from `medcap.modeling.blip.generation_config`; `prompt`: their given start."""
        super().__init__(*args, **kwargs)
        self.captions, self.prompt = captions, prompt
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the labels of all micro-batches and processes
        self.loss_is_scaled_for_ga = True  # and compute_loss divides by that count: nothing is divided again

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
        Smoothing is applied here to the shifted labels; the Trainer's own would compare each token with itself.
        """
        outputs = model(
            pixel_values=inputs["pixel_values"],
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
        )
        labels = inputs["labels"][:, 1:]  # what position t predicts is token t + 1
        loss = F.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
        )
        if num_items_in_batch is None:
            loss = loss / labels.ne(IGNORED).sum()
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:  # the gradients are averaged over processes, and were summed
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; raises FloatingPointError before weights are updated with a nan."""
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
            loss = self.compute_loss(model, inputs).detach()
            if prediction_loss_only:
                return loss, None, None
            ids = self._generate(inputs["pixel_values"])
        return loss, ids, inputs["row"]

    def _generate(self, pixel_values: torch.Tensor) -> torch.Tensor:
        given = prompt_ids(self.processing_class.tokenizer, self.prompt, len(pixel_values))
        return self.accelerator.unwrap_model(self.model).generate(
            pixel_values=pixel_values,
            generation_config=self.captions,
            **{name: ids.to(pixel_values.device) for name, ids in given.items()},
        )
