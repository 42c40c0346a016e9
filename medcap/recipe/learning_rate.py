"""Check the schedule of the learning rate by building it as the Trainer does, on an optimizer of one number."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from medcap.logs import error_line

UNKNOWN_STEPS = 10**9  # while the number of images is not known
WATCHES_METRIC = ("reduce_lr_on_plateau", "greedy")  # metric_for_best_model; their option `mode` is its direction
NO_WARMUP = ("constant", *WATCHES_METRIC)
NO_OPTIONS = ("constant", "constant_with_warmup")


def scheduler_fault(args: Seq2SeqTrainingArguments, steps: int = UNKNOWN_STEPS) -> str:
    """Return what is wrong with the schedule of a run of `steps` optimizer steps; "" if nothing is."""
    name, options = args.lr_scheduler_type.value, dict(args.lr_scheduler_kwargs or {})
    warmup = args.get_warmup_steps(steps)
    if warmup > steps:
        return f"warmup_steps is {args.warmup_steps:g}, but the run has {steps:,} steps: the warm-up would never end"
    if name in NO_WARMUP and warmup:
        return f"warmup_steps is {args.warmup_steps:g}, but lr_scheduler_type {name} has no warm-up; use another, or 0"
    if name in NO_OPTIONS and options:
        return f"lr_scheduler_kwargs is {options}, but lr_scheduler_type {name} takes no arguments"
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters.values()
    own = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing := [option for option in needed if option not in own | options.keys()]:
        return f"lr_scheduler_type {name} needs {', '.join(missing)} in lr_scheduler_kwargs"
    if unusable := [
        option for option, value in options.items() if isinstance(value, float) and not math.isfinite(value)
    ]:
        return f"lr_scheduler_kwargs has {unusable[0]} {options[unusable[0]]}; it must be finite"
    if (held := warmup + sum(_number(options.get(f"num_{part}_steps")) for part in ("stable", "decay"))) > steps:
        return f"warmup_steps and lr_scheduler_kwargs take {held:,} steps, but the run has {steps:,}"
    return _build_fault(args, warmup, steps, options)


def _build_fault(args: Seq2SeqTrainingArguments, warmup: int, steps: int, options: dict[str, Any]) -> str:
    """Return why the schedule cannot be built, or for which step it gives no usable learning rate."""
    name = args.lr_scheduler_type.value
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        schedule = get_scheduler(name, optimizer, warmup, steps, options)
        for step in sorted({0, warmup, (warmup + steps) // 2, steps - 1}):
            for factor in getattr(schedule, "lr_lambdas", ()):
                if not 0 <= (value := float(factor(step))) < math.inf:
                    return (
                        f"lr_scheduler_type {name} with {options} gives {value:g} times learning_rate at step {step:,}"
                    )
    except Exception as error:  # each schedule checks its arguments in its own way, or not
        return f"lr_scheduler_type {name} with lr_scheduler_kwargs {options}: {error_line(error)}"
    return ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
