"""The plan of a run: how many steps, how much disk, how much time."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import Seq2SeqTrainingArguments

from medcap.modeling.feature_cache import caching_obstacle, default_folder, feature_shape
from medcap.modeling.lora import trainable_names, trainable_summary
from medcap.recipe import Recipe


def existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that is there. Raises NotADirectoryError where a file is in the way."""
    found = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if not found.is_dir():
        raise NotADirectoryError(f"{place} cannot be made: {found} is a file")
    return found


@dataclass(frozen=True)
class Schedule:
    """How many steps, epochs, evaluations and checkpoints a recipe makes of so many training images."""

    steps_per_epoch: int
    steps: int
    epochs: float
    evaluations: int
    saves: int
    warmup_steps: int
    batch: int  # captions a step, of all processes

    @classmethod
    def of(cls, args: Seq2SeqTrainingArguments, images: int) -> Schedule:
        """As the Trainer counts them (`Trainer.set_initial_training_values`)."""
        shared = images / args.world_size
        batches = math.floor(shared / args.train_batch_size) if args.dataloader_drop_last else 0
        batches = batches or math.ceil(math.ceil(shared) / args.train_batch_size)
        per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        return cls(
            steps_per_epoch=per_epoch,
            steps=steps,
            epochs=steps / per_epoch,
            evaluations=_times(args.eval_strategy, args.eval_steps, steps, per_epoch),
            saves=_times(args.save_strategy, args.save_steps, steps, per_epoch),
            warmup_steps=args.get_warmup_steps(steps),
            batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        )


def _times(strategy: str, every: float | None, steps: int, per_epoch: int) -> int:
    if strategy == "no":
        return 0
    if strategy != "steps" or not every:
        return math.ceil(steps / per_epoch)
    return steps // max(int(every if every >= 1 else math.ceil(steps * every)), 1)


@dataclass(frozen=True)
class Room:
    """Bytes that a folder will take, and what its disk has."""

    place: Path
    parts: dict[str, int]

    @property
    def needed(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def free(self) -> int:
        """Bytes that the disk of the folder has left."""
        return shutil.disk_usage(existing(self.place)).free

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.parts.items())
        return f"{megabytes(self.needed)} ({parts}) in {self.place}, {megabytes(self.free)} free there"

    def check(self) -> None:
        """Raise OSError where the disk is too small."""
        if self.needed > self.free:
            raise OSError(f"the disk is too small: the run takes {self}; free some, or lower save_total_limit")


def megabytes(size: int) -> str:
    """Bytes as MB, or as GB where there are many."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run_room(args: Seq2SeqTrainingArguments, small: Path, schedule: Schedule) -> Room:
    """What `output_dir` will hold, from what the miniature left in `small`.

    A checkpoint is written before the oldest one goes, and the best one stays beside those that are kept. With
    push_to_hub each epoch's release waits in the folder too.
    """
    checkpoint = max((folder_bytes(one) for one in small.glob("checkpoint-*")), default=0)
    adapter = folder_bytes(small / "adapter")
    kept = min(schedule.saves, (args.save_total_limit or schedule.saves) + 2)
    releases = 1 + (schedule.evaluations if args.push_to_hub else 0)
    parts = {f"{kept} checkpoints": kept * checkpoint, "adapter": adapter, "release": releases * adapter}
    return Room(Path(args.output_dir), parts)


def features_room(recipe: Recipe, images: int, model: PeftModel, dtype: torch.dtype) -> Room | None:
    """What the features of `images` images will take at most, or None where none are kept."""
    wanted, base = recipe.model.feature_cache, model.get_base_model()
    once = wanted == "auto" and recipe.training.num_train_epochs <= 1
    if wanted == "off" or once or caching_obstacle(base):
        return None
    place = default_folder() if wanted == "auto" else Path(wanted)
    return Room(place, {f"{images:,} images": images * math.prod(feature_shape(base)) * dtype.itemsize})


@dataclass(frozen=True)
class Measured:
    """Seconds of a step on new images, of one on images met before, and of an evaluation of `captioned` images."""

    step: float
    later_step: float
    evaluation: float
    captioned: int

    def training(self, schedule: Schedule, valid: int) -> float:
        """Seconds of all steps and evaluations, with `valid` validation images."""
        first_epoch = min(schedule.steps, schedule.steps_per_epoch)
        steps = first_epoch * self.step + (schedule.steps - first_epoch) * self.later_step
        return steps + schedule.evaluations * valid / self.captioned * self.evaluation

    def plan(self, schedule: Schedule, valid: int) -> str:
        """The time that all of it will take, and what this is reckoned from."""
        return f"about {duration(self.training(schedule, valid))}, reckoned from what was measured here: {self}"

    def __str__(self) -> str:
        later = f" ({self.later_step:.2f} s on images met before)"
        return f"a step took {self.step:.2f} s{later}, captions of {self.captioned} images {self.evaluation:.1f} s"


def plan(model: PeftModel, schedule: Schedule, dtype: torch.dtype) -> dict[str, str]:
    """What learns, and how often."""
    names = "".join(f"\n    {line}" for line in trainable_names(model))
    return {
        "weights": f"{trainable_summary(model)}; computed in {str(dtype).removeprefix('torch.')}{names}",
        "steps": f"{schedule.steps:,} of {schedule.batch} captions, {schedule.steps_per_epoch:,} an epoch, "
        f"{schedule.epochs:g} epochs; warm-up over {schedule.warmup_steps:,}",
    }


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
