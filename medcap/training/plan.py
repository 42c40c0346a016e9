"""The plan of a run: its steps, disk space and time."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import DatasetDict
from peft import PeftModel
from transformers import PreTrainedModel, Seq2SeqTrainingArguments

from medcap.disk import folder_bytes, megabytes, nearest_folder
from medcap.modeling.adapter import trained_folder
from medcap.modeling.families import Family
from medcap.modeling.feature_cache import caching_obstacle
from medcap.modeling.feature_store import default_folder
from medcap.modeling.lora import trainable_names, trainable_summary
from medcap.recipe import Recipe, RecipeError
from medcap.recipe.learning_rate import scheduler_fault


@dataclass(frozen=True)
class Schedule:
    """The steps, epochs, evaluations and checkpoints of a recipe for a number of training images."""

    steps_per_epoch: int
    steps: int
    epochs: float
    evaluations: int
    saves: int
    warmup_steps: int
    batch: int  # captions per step of all processes

    @classmethod
    def of(cls, args: Seq2SeqTrainingArguments, images: int) -> Schedule:
        """Count the steps as `Trainer.set_initial_training_values` does."""
        per_process = images / args.world_size
        batches = math.floor(per_process / args.train_batch_size) if args.dataloader_drop_last else 0
        batches = batches or math.ceil(math.ceil(per_process) / args.train_batch_size)
        per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        return cls(
            steps_per_epoch=per_epoch,
            steps=steps,
            epochs=steps / per_epoch,
            evaluations=_event_count(args.eval_strategy, args.eval_steps, steps, per_epoch),
            saves=_event_count(args.save_strategy, args.save_steps, steps, per_epoch),
            warmup_steps=args.get_warmup_steps(steps),
            batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        )


def check_steps(args: Seq2SeqTrainingArguments, images: int) -> None:
    """Raise RecipeError for settings that leave a run on `images` training images without steps or evaluations."""
    schedule, batch = Schedule.of(args, images), args.train_batch_size * args.world_size
    if args.dataloader_drop_last and images < batch:
        raise RecipeError(
            f"dataloader_drop_last leaves no batch: {images:,} training images are fewer than the {batch:,} of a "
            "batch; lower per_device_train_batch_size, or set it to false"
        )
    if fault := scheduler_fault(args, schedule.steps):
        raise RecipeError(fault)
    end, unit = (schedule.steps, "steps") if args.eval_strategy == "steps" else (schedule.epochs, "epochs")
    if args.eval_strategy != "no" and args.eval_delay > end:
        raise RecipeError(
            f"eval_delay is {args.eval_delay:g} {unit}, but the run has {end:g}: nothing would be evaluated; "
            'lower it, or set eval_strategy: "no"'
        )


def _event_count(strategy: str, every: float | None, steps: int, per_epoch: int) -> int:
    if strategy == "no":
        return 0
    if strategy != "steps" or not every:
        return math.ceil(steps / per_epoch)
    return steps // max(int(every if every >= 1 else math.ceil(steps * every)), 1)


@dataclass(frozen=True)
class DiskSpace:
    """The bytes that a folder will need, by part, and those that are free on its disk."""

    folder: Path
    parts: dict[str, int]

    @property
    def needed(self) -> int:
        """The bytes of all parts."""
        return sum(self.parts.values())

    @property
    def free(self) -> int:
        """The free bytes of the folder's disk."""
        return shutil.disk_usage(nearest_folder(self.folder)).free

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.parts.items())
        return f"{megabytes(self.needed)} ({parts}) in {self.folder}, {megabytes(self.free)} free there"

    def check(self) -> None:
        """Raise OSError if the disk is too small."""
        if self.needed > self.free:
            raise OSError(f"the disk is too small: the run needs {self}; free some space, or lower save_total_limit")


def run_disk_space(args: Seq2SeqTrainingArguments, dry_run: Path, schedule: Schedule) -> DiskSpace:
    """Return the space that `output_dir` will need, estimated from the run folder of a dry run.

    A checkpoint is written before the oldest one is removed, and the best one stays in addition to
    `save_total_limit`. With push_to_hub the folder also holds the release of each epoch.
    """
    checkpoint = max((folder_bytes(folder) for folder in dry_run.glob("checkpoint-*")), default=0)
    result = trained_folder(dry_run)
    size = folder_bytes(result)
    count = min(schedule.saves, (args.save_total_limit or schedule.saves) + 2)
    releases = 1 + (schedule.evaluations if args.push_to_hub else 0)
    parts = {f"{count} checkpoints": count * checkpoint, result.name: size, "release": releases * size}
    return DiskSpace(Path(args.output_dir), parts)


def reuses_features(recipe: Recipe) -> bool:
    """Return whether a run has more epochs than views of a training image, so that it needs their features again."""
    return 0 < recipe.data.views < recipe.training.num_train_epochs


def cached_images(recipe: Recipe, data: DatasetDict) -> int:
    """Return the number of training and validation images whose features are cached, each view counted."""
    return recipe.data.views * len(data["train"]) + len(data["valid"])


def feature_disk_space(recipe: Recipe, images: int, family: Family, dtype: torch.dtype) -> DiskSpace | None:
    """Return the maximum space that the cached features of `images` images need; None without a cache."""
    setting = recipe.model.feature_cache
    unused = setting == "auto" and not reuses_features(recipe)
    if setting == "off" or unused or caching_obstacle(family):
        return None
    folder = default_folder() if setting == "auto" else Path(setting)
    size = images * math.prod(family.feature_shape()) * dtype.itemsize
    if recipe.model.feature_cache_gb is not None:
        size = min(size, int(recipe.model.feature_cache_gb * 1e9))
    return DiskSpace(folder, {f"{images:,} images": size})


@dataclass(frozen=True)
class Timing:
    """Seconds of a step on new images, of a step on cached images, and of an evaluation of `captioned` images.

    `views`: the number of epochs whose images are new.
    """

    step: float
    later_step: float
    evaluation: float
    captioned: int
    views: int = 1

    def training(self, schedule: Schedule, valid: int) -> float:
        """Return the seconds of all steps and evaluations, with `valid` validation images."""
        first = min(schedule.steps, schedule.steps_per_epoch * self.views)
        steps = first * self.step + (schedule.steps - first) * self.later_step
        return steps + schedule.evaluations * valid / self.captioned * self.evaluation

    def describe(self, schedule: Schedule, valid: int) -> str:
        """Describe the time of the run and the measurements that it is estimated from."""
        return (
            f"about {duration(self.training(schedule, valid))}, estimated from measurements here: a step took "
            f"{self.step:.2f} s ({self.later_step:.2f} s on images seen before), captions of {self.captioned} images "
            f"{self.evaluation:.1f} s"
        )


def describe_plan(model: PeftModel | PreTrainedModel, schedule: Schedule, dtype: torch.dtype) -> dict[str, str]:
    """Describe the trainable parameters and the steps."""
    names = "".join(f"\n    {line}" for line in trainable_names(model))
    return {
        "parameters": f"{trainable_summary(model)}; computed in {str(dtype).removeprefix('torch.')}{names}",
        "steps": f"{schedule.steps:,} of {schedule.batch} captions, {schedule.steps_per_epoch:,} per epoch, "
        f"{schedule.epochs:g} epochs; warm-up over {schedule.warmup_steps:,}",
    }


def duration(seconds: float) -> str:
    """Return seconds as text: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
