"""CaptionTrainer: `Seq2SeqTrainer` with the loss, the generation and the memory that BLIP needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import GenerationConfig, Seq2SeqTrainer
from transformers.trainer_callback import ExportableState

from medcap.data.captions import IGNORED
from medcap.modeling.blip import prompt_ids
from medcap.modeling.features import Encoder, FeatureCache
from medcap.modeling.generation import generate_ids
from medcap.quiet import one_line
from medcap.training.callbacks import StepSeed
from medcap.training.checkpoints import STATE, checkpoints, is_for_a_stop, rotate, seal, step_of, stopped_in
from medcap.training.sampler import LengthSampler
from medcap.training.whole import PART, put_in_place, remove, write_text

LOSS_WINDOW = "loss_window_{}.json"  # of a process


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
        self.add_callback(StepSeed())
        self.checkpoint_limit, self.args.save_total_limit = self.args.save_total_limit, None  # see `_save_checkpoint`
        self.superseded: list[Path] = []  # checkpoints to be removed once there is a new one
        self.resumed: Path | None = None
        self.undone: Mapping[str, Any] | None = None  # what a signal keeps from being done at this step
        self.undone_before: Mapping[str, Any] | None = None  # and kept, at that of `resumed`

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            self.order = super()._get_train_sampler(train_dataset)
            return self.order
        lengths = (self.train_dataset if train_dataset is None else train_dataset)[self.args.length_column_name]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.order = LengthSampler(lengths, batch_size, seed)
        return self.order

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)  # the Trainer's own would read every image to learn of lengths

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """As the Trainer's; the best checkpoint is looked for in this run, wherever its folder lay before."""
        begin = super()._init_training_state(max_steps, steps, epochs, resume_from_checkpoint, trial)
        run = Path(self.args.output_dir)
        if (best := run / f"checkpoint-{self.state.best_global_step}").is_dir():
            self.state.best_model_checkpoint = str(best)
        step = self.state.global_step
        self.superseded = [path for path in checkpoints(run) if step_of(path) > step or is_for_a_stop(path)]
        if resume_from_checkpoint is not None:
            self.resumed = Path(resume_from_checkpoint)
            self.undone_before = stopped_in(self.resumed)
        return begin

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, in the order of this epoch; nothing where early stopping has said so already."""
        if self.control.should_training_stop:
            return
        if isinstance(self.order, LengthSampler):  # accelerate does not reach it behind the batches that it skips
            self.order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write checkpoint-N whole: under another name, with checksums, synced, renamed; then remove older ones.

        The Trainer's own writes in place, so that a kill or a full disk leaves a torn one under the name that is
        looked for. Its `save_total_limit` of 1 removes the last checkpoint before the adapter is written. Raises
        OSError, one line, when it cannot be written; those before it stay.
        """
        run, step = Path(self.args.output_dir), self.state.global_step
        final = run / f"checkpoint-{step}"
        part = final.with_name(final.name + PART)
        self.store_flos()
        best = run / f"checkpoint-{self.state.best_global_step}"
        if best == final or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        try:
            self._write_checkpoint(part)
            if self.args.should_save:
                seal(part, self.undone)
                put_in_place(part, final)
        except Exception as error:  # safetensors and torch have their own for a full disk
            shutil.rmtree(part, ignore_errors=True)
            raise OSError(f"{final} could not be written: {one_line(error)}; {self._how_to_go_on()}") from error
        self._tidy(final)
        self.superseded = [final] if self.undone else []
        self.accelerator.wait_for_everyone()

    def _finalize_training(self, *args: Any) -> Any:
        """As the Trainer's; a run that was killed after its last checkpoint has older ones to remove still."""
        self._tidy()
        return super()._finalize_training(*args)

    def _tidy(self, final: Path | None = None) -> None:
        """Remove what a new checkpoint, `final`, has superseded, and what is beyond the limit."""
        if self.args.should_save:
            for path in self.superseded:
                if path != final:
                    remove(path)
            rotate(Path(self.args.output_dir), self.checkpoint_limit, self.state.best_global_step)

    def _write_checkpoint(self, part: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(part), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(part))
            self._save_scaler(str(part))
            self._save_rng_state(str(part))
        if self.args.should_save:
            keeping = [
                one for one in [*self.callback_handler.callbacks, self.control] if isinstance(one, ExportableState)
            ]
            self.state.stateful_callbacks = {type(one).__name__: one.state() for one in keeping}
            self.state.save_to_json(str(part / STATE))
        self.accelerator.wait_for_everyone()

    def _how_to_go_on(self) -> str:
        before = [path.name for path in checkpoints(Path(self.args.output_dir))][:1]
        return (
            f"{before[0]} is as it was: the same command goes on from there" if before else "there is none before it"
        )

    def _save_rng_state(self, output_dir: str) -> None:
        """With the random numbers, the losses since the last line of the log, which the next line is the mean of."""
        super()._save_rng_state(output_dir)
        window = {"loss": self._tr_loss.item(), "since_step": self._globalstep_last_logged}
        write_text(Path(output_dir) / LOSS_WINDOW.format(self.args.process_index), json.dumps(window))

    def restore_losses(self) -> None:
        """Take up the losses of steps that are not in the log yet, from the checkpoint that is gone on from."""
        path = self.resumed and self.resumed / LOSS_WINDOW.format(self.args.process_index)
        if path and path.is_file():
            window = json.loads(path.read_text(encoding="utf-8"))
            self._tr_loss.fill_(window["loss"])
            self._globalstep_last_logged = window["since_step"]

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
