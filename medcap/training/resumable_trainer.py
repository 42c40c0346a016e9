"""ResumableTrainer: whole checkpoints, and runs that go on from them as if they had never been stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Seq2SeqTrainer, TrainerState
from transformers.trainer_callback import ExportableState

from medcap.io import PARTIAL, commit_folder, remove_folder, write_text
from medcap.logs import error_line, named_errors
from medcap.training.callbacks import StepSeed
from medcap.training.checkpoints import STATE, checkpoints, is_for_a_stop, rotate, step_of, stopped_in, write_checksums
from medcap.training.sampler import LengthSampler

LOSS_WINDOW = "loss_window_{}.json"  # of a process


class ResumableTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` whose steps depend on seed and step alone, and whose checkpoints are whole or not there.

    Started again from one of them, a run takes up order, random numbers, losses of the log, and what a signal left
    undone: on a CPU it ends bit for bit as it would have without the interruption.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; `save_total_limit` is handling_signals here, not there."""
        super().__init__(*args, **kwargs)
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
        part = final.with_name(final.name + PARTIAL)
        self.store_flos()
        best = run / f"checkpoint-{self.state.best_global_step}"
        if best == final or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        try:
            self._write_checkpoint(part)
            if self.args.should_save:
                write_checksums(part, self.undone)
                commit_folder(part, final)
        except Exception as error:  # safetensors and torch have their own for a full disk
            shutil.rmtree(part, ignore_errors=True)
            raise OSError(f"{final} could not be written: {error_line(error)}; {self._how_to_go_on()}") from error
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
                    remove_folder(path)
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with named_errors(resume_from_checkpoint):
            TrainerState.load_from_json(str(Path(resume_from_checkpoint) / STATE))  # read again, unnamed
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with named_errors(checkpoint):  # the Trainer unpickles no more than weights, and says how one might
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with named_errors(checkpoint):
            super()._load_rng_state(checkpoint)
