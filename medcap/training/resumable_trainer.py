"""ResumableTrainer: atomic checkpoints, and resumed runs with the result of an uninterrupted one."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput, seed_worker

from medcap.disk import DiskFullError, disk_full, folder_bytes, full_disk_line
from medcap.io import PARTIAL, commit_folder, remove_folder, write_text
from medcap.logs import error_line, named_errors
from medcap.private_hooks import check_hooks
from medcap.training.callbacks import ResumeCallback
from medcap.training.checkpoints import (
    STATE,
    checkpoint_of,
    checkpoints,
    find_damage,
    find_missing_weights,
    pending_work,
    rotate,
    step_of,
    write_checksums,
)
from medcap.training.rows import LengthSampler, SourceSampler

LOSS_WINDOW = "loss_window_{}.json"  # one per process
LOADER_OPTIONS = (
    "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "drop_last",
    "multiprocessing_context", "in_order",  # the last two: in newer releases of transformers only
)  # fmt: skip


class ResumableTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` whose steps depend only on seed and step number, and whose checkpoints are atomic.

    A resumed run restores the order of the images, the random numbers, the losses that are not logged yet, and the
    evaluation that a signal postponed. On a CPU its result is bit for bit that of an uninterrupted run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the Trainer's arguments; `save_total_limit` is applied in `save_checkpoint` instead."""
        super().__init__(*args, **kwargs)
        self.args: Any = copy.copy(self.args)
        self.checkpoint_limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.groups_by_length = self.args.train_sampling_strategy == "group_by_length"
        if self.groups_by_length:  # the Trainer would group the evaluation by length too, and read every image for it
            self.args.train_sampling_strategy = "random"
        self.sampler: LengthSampler | SourceSampler | None = None  # None: the Trainer's
        self.superseded: list[Path] = []  # checkpoints to remove after the next one is written
        self.resumed: Path | None = None
        self.has_loaded = False  # whether the first step, and so everything in `resumed`, was loaded
        self.best_loaded: Path | None = None  # the checkpoint whose weights the model has at the end
        self.pending: Mapping[str, Any] | None = None  # work that a signal postpones at this step
        self.resumed_pending: Mapping[str, Any] | None = None  # work that was postponed at the step of `resumed`
        self.add_callback(ResumeCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint if one is given (True: the newest); errors of loading it name its folder."""
        if resume_from_checkpoint is True and (newest_first := checkpoints(Path(self.args.output_dir))):
            resume_from_checkpoint = str(newest_first[0])
        self.resumed = Path(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str) else None
        self.has_loaded, self.best_loaded = False, None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception:
            if self.resumed is None or self.has_loaded:
                raise
            with named_errors(self.resumed, FloatingPointError, torch.OutOfMemoryError):
                raise

    def get_train_dataloader(self) -> DataLoader:
        """Return the Trainer's loader, or one whose rows `LengthSampler` or `SourceSampler` chooses."""
        args = self.args
        if self.groups_by_length:
            lengths = self.train_dataset[args.length_column_name]
            step_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.sampler = LengthSampler(lengths, step_size, args.seed if args.data_seed is None else args.data_seed)
        if self.sampler is None:
            return super().get_train_dataloader()
        options = {name: getattr(args, f"dataloader_{name}", None) for name in LOADER_OPTIONS}
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            **{name: value for name, value in options.items() if value is not None},
        )
        return self.accelerator.prepare(loader)

    def begin_epoch(self) -> None:
        """Set the epoch of the sampler; accelerate does not do so when it skips batches of a resumed epoch."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(self.state.epoch or 0))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run one epoch, unless early stopping or max_steps had already ended the resumed run."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the Trainer does. Raises FloatingPointError for weights that are not finite."""
        self._check_weights()
        return super().evaluate(*args, **kwargs)

    def restore_run(self) -> None:
        """Restore what the Trainer does not: the best checkpoint's folder, losses not logged yet, postponed work."""
        check_hooks("transformers", self)
        run, step = Path(self.args.output_dir), self.state.global_step
        self._set_best_checkpoint()
        self.superseded = [path for path in checkpoints(run) if step_of(path) > step or pending_work(path)]
        if self.resumed is None:
            return
        self.resumed_pending = pending_work(self.resumed)
        window = self.resumed / LOSS_WINDOW.format(self.args.process_index)
        if window.is_file():
            losses = json.loads(window.read_text(encoding="utf-8"))
            self._tr_loss.fill_(losses["loss"])
            self._globalstep_last_logged = losses["since_step"]

    def do_pending_work(self) -> None:
        """Log, evaluate and save as `self.control` requests, outside of an epoch."""
        self._maybe_log_save_evaluate(self._tr_loss, None, self.model, None, self.state.epoch, None, 0.0)

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step now. Raises OSError if it cannot be written."""
        self._save_checkpoint(self.model, None)

    def remove_superseded(self, newest: Path | None = None) -> None:
        """Remove the checkpoints that `newest` supersedes, then the oldest beyond `save_total_limit`."""
        if self.args.should_save:
            for path in self.superseded:
                if path != newest:
                    remove_folder(path)
            rotate(Path(self.args.output_dir), self.checkpoint_limit, self.state.best_global_step)

    def stop_non_finite(self, problem: str, rows: Iterable[int]) -> NoReturn:
        """Raise FloatingPointError that names the step and the image ids of `rows` of the training data."""
        ids = ", ".join(str(self.train_dataset[row].get("image_id", row)) for row in rows)
        step = self.state.global_step + 1
        raise FloatingPointError(f"{problem} at step {step}, image_id {ids}; no weight was changed. {self._advice()}")

    def _check_weights(self) -> None:
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not weight.isfinite().all():
                step = self.state.global_step
                raise FloatingPointError(f"{name} is not finite after step {step}. {self._advice()}")

    def _advice(self) -> str:
        fix = "lower learning_rate, or remove the images at fault, and"
        if not (last := checkpoints(Path(self.args.output_dir))):
            return f"There is no checkpoint yet: {fix} start again in another output_dir"
        return f"{last[0].name} is unchanged: {fix} resume from it with --allow_changes"

    def _set_best_checkpoint(self) -> None:
        """Name the best checkpoint by its step: a recorded path may be of before a move, or of another run."""
        best = checkpoint_of(Path(self.args.output_dir), self.state.best_global_step)
        self.state.best_model_checkpoint = None if best is None else str(best)

    def _load_best_model(self) -> None:
        """Load the best checkpoint of this run. Raises ValueError, where the Trainer would keep the last step's."""
        best = Path(self.state.best_model_checkpoint)
        if damage := find_damage(best) or find_missing_weights(best):
            raise ValueError(
                f"{best}, the best checkpoint, cannot be loaded: {damage}; no adapter was written. The same command "
                "resumes from an undamaged checkpoint, or from scratch, and trains it again"
            )
        with named_errors(best):
            super()._load_best_model()
        self.best_loaded = best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write checkpoint-N atomically: under another name, with checksums, synced, renamed; then remove older ones.

        The Trainer writes in place, so that a kill or a full disk leaves a damaged checkpoint that the next start
        would use. Its `save_total_limit` of 1 removes the last checkpoint before the adapter is written. Raises
        FloatingPointError for weights that are not finite, and OSError, in one line, for a failed write.
        """
        self._check_weights()
        run = Path(self.args.output_dir)
        final = run / f"checkpoint-{self.state.global_step}"
        staging = final.with_name(final.name + PARTIAL)
        self.store_flos()
        self._set_best_checkpoint()
        try:
            self._write_checkpoint(staging)
            if self.args.should_save:
                write_checksums(staging, self.pending)
                commit_folder(staging, final)
        except Exception as error:  # safetensors and torch raise their own errors for a full disk
            shutil.rmtree(staging, ignore_errors=True)
            last = next(iter(checkpoints(run)), None)
            then = f"resume with the same command: {last.name} is unchanged" if last else "start again"
            if reason := disk_full(error):
                needed = folder_bytes(last) if last else None
                raise DiskFullError(full_disk_line(final, reason, needed, then)) from error
            raise OSError(f"{final} could not be written: {error_line(error)}; {then}") from error
        self.remove_superseded(final)
        self.superseded = [final] if self.pending else []
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as the Trainer does; a whole model with the names of its `state_dict`, by which the Trainer loads it.

        `save_pretrained` would write the names of older releases, which the Trainer skips with a warning.
        """
        if isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)
            self.processing_class.save_pretrained(output_dir)

    def _write_checkpoint(self, staging: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(staging), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            window = {"loss": self._tr_loss.item(), "since_step": self._globalstep_last_logged}
            write_text(staging / LOSS_WINDOW.format(self.args.process_index), json.dumps(window))
        if self.args.should_save:
            stateful = [*self.callback_handler.callbacks, self.control]
            self.state.stateful_callbacks = {
                type(source).__name__: source.state() for source in stateful if isinstance(source, ExportableState)
            }
            self.state.save_to_json(str(staging / STATE))
        self.accelerator.wait_for_everyone()
