"""Preemption: a signal ends training after the current step, with a checkpoint to resume from."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

if TYPE_CHECKING:
    from medcap.training.trainer import CaptionTrainer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, `kill` and schedulers, SLURM's --signal=USR1@60


class PreemptionCallback(TrainerCallback):
    """After a signal, writes a checkpoint at this step and exits with status 128 + the signal's number.

    An evaluation that is due at the step is postponed: the checkpoint records it, and the resumed run does it first.
    All processes exit after the same step. A second Ctrl-C exits at once.
    """

    def __init__(self, trainer: CaptionTrainer) -> None:
        self.trainer, self.pid = trainer, os.getpid()
        self.received = 0  # the signal of this process
        self.stop_signal = 0  # the one that stops all processes

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Record SIGNALS instead of ending the program."""
        before = {number: signal.signal(number, self._record) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _record(self, number: int, frame: Any) -> None:
        if os.getpid() != self.pid:  # a data loader worker, forked with this handler, ends with its parent
            return
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        if not self.received and self.trainer.args.process_index == 0:
            hint = "; press Ctrl-C again to exit at once" if number == signal.SIGINT else ""
            sys.stderr.write(
                f"\nmedcap: {signal.Signals(number).name}: a checkpoint is written after this step{hint}\n"
            )
        self.received = number

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Do the postponed work, and train no step if the run had ended already."""
        trainer = self.trainer
        if pending := trainer.resumed_pending:
            control.should_log = False  # the checkpoint restores the flags, this one too
            control.should_evaluate, control.should_save = pending["evaluate"], pending["save"]
            if pending["epoch_end"]:
                trainer.callback_handler.on_epoch_end(args, state, control)
            trainer.do_pending_work()
        control.should_training_stop |= state.global_step >= state.max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint of this step, and postpone its evaluation."""
        if not self._should_stop():
            return
        self._postpone(state, control, control.should_evaluate)
        control.should_evaluate, control.should_save = False, True

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Interrupt an evaluation, with a checkpoint of the step before it."""
        if self._should_stop():
            self._postpone(state, control, evaluate=True)
            self.trainer.save_checkpoint()
            self._exit(state.global_step)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Exit: the checkpoint is complete."""
        if self.stop_signal:
            self._exit(state.global_step)

    def _should_stop(self) -> bool:
        """Return whether any process has received a signal; all processes agree, after the same step."""
        self.stop_signal = self.received
        if self.trainer.accelerator.num_processes > 1:
            received = torch.tensor([self.received], device=self.trainer.accelerator.device)
            self.stop_signal = int(self.trainer.accelerator.gather(received).max())
        return self.stop_signal > 0

    def _postpone(self, state: TrainerState, control: TrainerControl, evaluate: bool) -> None:
        """Record the work due at this step, which the resumed run does first; none if only a checkpoint is due."""
        ends = control.should_training_stop or float(state.epoch or 0).is_integer()
        if evaluate or ends or not control.should_save:
            work = {"evaluate": evaluate, "save": control.should_save, "epoch_end": ends}
            self.trainer.pending = {"signal": signal.Signals(self.stop_signal).name, **work}

    def _exit(self, step: int) -> None:
        if self.trainer.args.process_index == 0:
            name = signal.Signals(self.stop_signal).name
            checkpoint = f"{self.trainer.args.output_dir}/checkpoint-{step}"
            sys.stderr.write(
                f"\nmedcap: stopped by {name}; {checkpoint} is complete, and the same command resumes from it\n"
            )
        raise SystemExit(128 + self.stop_signal)
