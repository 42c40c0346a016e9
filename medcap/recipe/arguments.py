"""The keys of a recipe, their types, defaults and ranges."""
# ruff: noqa: RUF009  `key` returns a new field at each call

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import IntervalStrategy

from medcap.io import write_text
from medcap.recipe.groups import (
    DataArguments,
    GenerationArguments,
    LoraArguments,
    ModelArguments,
    ScstArguments,
    key,
)
from medcap.recipe.learning_rate import WATCHES_METRIC
from medcap.recipe.ranges import (
    FILLED,
    FIXED,
    IMPORTED_NAMES,
    LENGTHS,
    NAMES,
    PATTERNS,
    TRAINER_RANGES,
    UNUSED,
    Range,
    find_fault,
)


class RecipeError(ValueError):
    """The recipe or its overrides are wrong. Nothing was started, and the command line exits with status 2."""


@dataclass
class CaptionTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults that captioning needs."""

    output_dir: str = key("", "folder of the run")
    eval_strategy: IntervalStrategy | str = key("epoch", "when to generate and score validation captions")
    save_strategy: IntervalStrategy | str = key("epoch", "when to write a checkpoint")
    load_best_model_at_end: bool = key(True, "save the adapter of the best epoch")
    metric_for_best_model: str | None = key("cider", "a caption metric, or loss")
    lr_scheduler_kwargs: dict[str, Any] | None = key(None, "arguments of lr_scheduler_type")
    report_to: str | list[str] | None = key("none", "none, tensorboard, wandb, trackio, ...")
    logging_steps: float = key(10, "steps between log lines")
    remove_unused_columns: bool = key(False, "must be false: the transform needs the image column")
    predict_with_generate: bool = key(True, "must be true: every evaluation generates captions")
    disable_tqdm: bool | None = key(False, "hide the progress bar")
    early_stopping_patience: int | None = key(
        None, "stop after this many evaluations without improvement", (1, math.inf)
    )
    train_sampling_strategy: str = key(
        "random", "random, sequential, or group_by_length: little padding, but short captions weigh more"
    )
    dataloader_num_workers: int = key(-1, "processes that read images; -1: up to 8 with a GPU, none on a CPU")
    ddp_find_unused_parameters: bool | None = key(
        False, "search for unused parameters after each step; every adapter is used"
    )
    hub_overwrite: bool = key(False, "push_to_hub may replace a repository that medcap did not create")
    allow_changes: bool = key(False, "resume although the recipe, data or base changed")
    logging_nan_inf_filter: bool = key(False, "must be false: a non-finite loss stops the run")
    ddp_broadcast_buffers: bool | None = key(False, "synchronize buffers; those of BLIP are constant")
    dry_run: bool = key(False, "run every stage on a few images, print the plan, save no weights")

    def __post_init__(self) -> None:
        """Choose the device of processes without a GPU, and the number of workers.

        They end with each epoch: torch waits at exit for persistent ones that fill pinned memory, for 5 s each.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # without it accelerate does not connect the processes, and each trains alone
        super().__post_init__()
        if self.lr_scheduler_type in WATCHES_METRIC:  # transformers would minimize any metric
            mode = {"mode": "max" if self.greater_is_better else "min"}
            self.lr_scheduler_kwargs = {**mode, **(self.lr_scheduler_kwargs or {})}
        if self.dataloader_num_workers < 0:
            cores = (os.cpu_count() or 1) // self.world_size
            self.dataloader_num_workers = 0 if self.device.type == "cpu" else min(8, cores)


GROUPS = {  # the attributes of a Recipe
    "data": DataArguments,
    "model": ModelArguments,
    "lora": LoraArguments,
    "generation": GenerationArguments,
    "scst": ScstArguments,
    "training": CaptionTrainingArguments,
}
RANGES: dict[str, Range] = {
    **TRAINER_RANGES,
    **{
        key.name: Range(*key.metadata["range"])
        for group in GROUPS.values()
        for key in fields(group)
        if key.metadata.get("range")
    },
}
CHECKED = FILLED.union(RANGES, NAMES, PATTERNS, LENGTHS, FIXED, UNUSED, IMPORTED_NAMES, ["lora_init", "scst_reward"])
# keys that were removed or never supported, and their replacement in transformers 5 or medcap
REPLACED = {
    "warmup_ratio": "warmup_steps: a value below 1 is a fraction of all steps",
    "evaluation_strategy": "eval_strategy",
    "overwrite_output_dir": "another output_dir, or resume_from_checkpoint: last",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use_cpu",
    "group_by_length": "train_sampling_strategy: group_by_length, which gives short captions more weight",
    "generation_num_beams": "num_beams",
    "generation_max_length": "max_new_tokens",
    "generation_config": "num_beams, max_new_tokens, min_new_tokens, no_repeat_ngram_size and length_penalty",
    "hub_token": "`hf auth login` or the environment variable HF_TOKEN; a recipe is published, a token must not be",
    "hub_strategy": "push_to_hub: true, which pushes every epoch as its own revision and the best one as main",
    "hub_always_push": "push_to_hub: true, which pushes every epoch even if an earlier push is running",
    "hub_revision": "push_to_hub: true; the revisions are named epoch-1, epoch-2, ... and main",
    "dataloader_persistent_workers": "dataloader_num_workers: workers that persist delay the end of a run on a GPU",
    "bf16_full_eval": "precision: bf16",
    "fp16_full_eval": "precision: fp16",
    "sortish_sampler": "train_sampling_strategy: group_by_length, which gives short captions more weight",
    "local_rank": "accelerate launch, which sets it",
    "parallelism_config": "a configuration of accelerate, see `medcap train --accelerate`",
    "do_train": "`medcap train`, which always trains",
    "do_eval": "eval_strategy",
    "do_predict": "`medcap evaluate`",
    "fraction": "train_fraction",
    "target_modules": "lora_target_modules",
    "rank": "lora_r",
}
# not part of a saved recipe: they describe how one run was started, not its result
_TRANSIENT = frozenset({"resume_from_checkpoint", "allow_changes", "dry_run"})


@dataclass(frozen=True)
class Recipe:
    """The resolved settings of one run. `given` holds the keys set by the file or the command line."""

    data: DataArguments
    model: ModelArguments
    lora: LoraArguments
    generation: GenerationArguments
    scst: ScstArguments
    training: CaptionTrainingArguments
    given: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Return a flat recipe: all keys of medcap that have an effect, and those of the Trainer that were given."""
        groups = (getattr(self, group) for group in GROUPS if group != "training")
        own = {key: value for group in groups for key, value in vars(group).items()}
        trainer = {key: getattr(self.training, key) for key in sorted(self.given - own.keys() - _TRANSIENT)}
        unused = ("lora_",) * (self.lora.adapter == "none") + ("scst_",) * (self.scst.loss != "scst")
        given = {key: value for key, value in {**own, **trainer}.items() if value is not None}
        return {key: _plain(value) for key, value in given.items() if not key.startswith(unused)}

    def setting(self, key: str) -> Any:
        """Return the value of any key."""
        return next(vars(getattr(self, group))[key] for group in GROUPS if key in vars(getattr(self, group)))

    def value(self, key: str) -> Any:
        """Return the value of any key as YAML holds it."""
        return _plain(self.setting(key))

    def save(self, path: Path) -> None:
        """Write the resolved recipe atomically; it can be run again."""
        write_text(path, yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Convert enums and other objects to values that YAML holds and `read_recipe` reads as the same value."""
    if value == []:  # how the Trainer stores report_to: none
        return "none"
    if isinstance(value, list):
        return [_plain(item) for item in value]
    value = value.to_dict() if hasattr(value, "to_dict") else getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, dict)) else str(value)


def check_values(values: Mapping[str, Any]) -> None:
    """Raise RecipeError for a value that its key does not allow; None is not checked."""
    for name in values.keys() & CHECKED:
        if values[name] is not None and (fault := find_fault(name, values[name], RANGES.get(name))):
            raise RecipeError(fault)
