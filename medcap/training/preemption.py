"""Leaving early and going on exactly: a signal ends training after its step, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from medcap.training.trainer import CaptionTrainer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, `kill` and schedulers, SLURM's --signal=USR1@60


class PreemptionCallback(TrainerCallback):
    """After a signal, writes a checkpoint at this step and ends the program with status 128 + the signal's number.

    What was due at the step and would take long, its evaluation, is noted in the checkpoint and done when the run goes
    on. All processes leave at the same step. A second Ctrl-C leaves at once.
    """

    def __init__(self, trainer: CaptionTrainer) -> None:
        self.trainer, self.pid = trainer, os.getpid()
        self.noted = 0  # the signal of this process
        self.leaving = 0  # the one that all processes leave for

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Note SIGNALS instead of dying of them, for as long as this lasts."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self.pid:  # a process that reads images, forked with this handler: it ends with its parent
            return
        if number == signal.SIGINT and self.noted:
            raise KeyboardInterrupt
        if not self.noted and self.trainer.args.process_index == 0:
            how = "; Ctrl-C once more leaves at once" if number == signal.SIGINT else ""
            sys.stderr.write(
                f"\nmedcap: {signal.Signals(number).name}: a checkpoint is written after this step{how}\n"
            )
        self.noted = number

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do what a signal left undone, and train no step where the run had ended already."""
        trainer = self.trainer
        trainer.restore_losses()
        if undone := trainer.undone_before:
            control.should_log = False  # what the flags were comes with the checkpoint
            control.should_evaluate, control.should_save = undone["evaluate"], undone["save"]
            if undone["epoch_end"]:
                trainer.callback_handler.on_epoch_end(args, state, control)
            trainer._maybe_log_save_evaluate(trainer._tr_loss, None, trainer.model, None, state.epoch, None, 0.0)
        control.should_training_stop |= state.global_step >= state.max_steps or any(
            one.early_stopping_patience_counter >= one.early_stopping_patience
            for one in trainer.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have a checkpoint written now, and no evaluation."""
        if not self._agreed():
            return
        ends = control.should_training_stop or float(state.epoch or 0).is_integer()
        if control.should_evaluate or ends or not control.should_save:
            self._note_undone(control.should_evaluate, control.should_save, ends)
        control.should_evaluate, control.should_save = False, True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave an evaluation, with a checkpoint of the step that it came after."""
        if self._agreed():
            ends = control.should_training_stop or float(state.epoch or 0).is_integer()
            self._note_undone(True, control.should_save, ends)
            self.trainer._save_checkpoint(self.trainer.model, None)
            self._leave(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is whole: leave."""
        if self.leaving:
            self._leave(state.global_step)

    def _agreed(self) -> bool:
        """Whether any process was told to stop: asked of all of them, after the same step."""
        self.leaving = self.noted
        if self.trainer.accelerator.num_processes > 1:
            noted = torch.tensor([self.noted], device=self.trainer.accelerator.device)
            self.leaving = int(self.trainer.accelerator.gather(noted).max())
        return self.leaving > 0

    def _note_undone(self, evaluate: bool, save: bool, epoch_end: bool) -> None:
        name = signal.Signals(self.leaving).name
        self.trainer.undone = {"signal": name, "evaluate": evaluate, "save": save, "epoch_end": epoch_end}

    def _leave(self, step: int) -> None:
        if self.trainer.args.process_index == 0:
            name, checkpoint = signal.Signals(self.leaving).name, f"{self.trainer.args.output_dir}/checkpoint-{step}"
            sys.stderr.write(
                f"\nmedcap: stopped by {name}; {checkpoint} is whole, and the same command goes on from there\n"
            )
        raise SystemExit(128 + self.leaving)
