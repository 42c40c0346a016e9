"""The help text of `medcap train` and scripts/train.py."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from typing import Any

from medcap.recipe.arguments import GROUPS, REPLACED
from medcap.recipe.ranges import UNUSED
from medcap.recipe.values import describe_type, key_types

WIDTH, COLUMN = 100, 34
USAGE = """\
usage: medcap train --config RECIPE [--accelerate NAME] [--num_processes N] [--key value ...]
   or: accelerate launch scripts/train.py --config RECIPE [--key value ...]
Train a model from a YAML recipe. Options override keys of the recipe. Defaults are in [brackets]."""
EXAMPLE = """\
example:
  medcap train --config recipes/phantom/lora.yaml --data_dir data/phantom --output_dir runs/mine"""
COMMAND = {
    "--config RECIPE": "YAML file of the recipe, see recipes/",
    "--accelerate NAME": "medcap train: config in recipes/accelerate/, or a file",
    "--num_processes N": "medcap train: number of processes, usually one per GPU",
    "--debug": "show the traceback of an error",
    "--help, --help-all": "show the main keys, or every key, and exit",
}
TRAINING = {  # the training keys of the short help; "" stands for the help of medcap's own field
    "output_dir": "",
    "num_train_epochs": "number of epochs",
    "learning_rate": "initial learning rate",
    "per_device_train_batch_size": "captions per micro-batch and device",
    "gradient_accumulation_steps": "micro-batches per optimizer step",
    "seed": "seed for weight initialization, data order and dropout",
    "early_stopping_patience": "",
    "resume_from_checkpoint": "last, or the folder of a checkpoint",
    "allow_changes": "",
    "dry_run": "",
    "push_to_hub": "push every epoch to the Hub",
    "hub_overwrite": "",
}


RARE = {
    "augmentation_views",
    "feature_cache_gb",
    "lora_init",
    "lora_rank_pattern",
    "lora_alpha_pattern",
    "lora_lr_ratio",
    "data_weights",
    "init_adapter",
    "min_new_tokens",
    "rerank",
    "rerank_candidates",
    "rerank_neighbors",
    "rerank_neighbor_weight",
    "rerank_pool",
    "scst_samples",
    "scst_baseline",
    "scst_reward",
    "scst_top_k",
    "scst_temperature",
}  # only with --help-all


def recipe_help(every_key: bool = False) -> str:
    """Return the help: the keys of medcap and the main keys of training, or with `every_key` all keys."""
    hidden = REPLACED.keys() | UNUSED.keys() | {"bf16", "fp16"}  # precision replaces bf16 and fp16
    hidden |= set() if every_key else RARE
    lines = [USAGE, *(line for option, text in COMMAND.items() for line in _entry(option, text))]
    for group, arguments in GROUPS.items():
        keys = {field.name: field for field in dataclasses.fields(arguments) if field.init}
        shown = {key: "" for key in keys if key not in hidden}
        if group == "training" and not every_key:
            group, shown = "training (other keys of transformers.Seq2SeqTrainingArguments: --help-all)", TRAINING
        lines += [f"{group}:", *(line for key, text in shown.items() for line in _key(keys[key], text))]
    return "\n".join([*lines, EXAMPLE])


def _key(field: dataclasses.Field[Any], text: str = "") -> list[str]:
    text = text or " ".join(field.metadata.get("help", "").split())
    if typing.get_origin(key_types()[field.name][0]) is typing.Literal and field.name != "trackio_static_space_id":
        text = f"{text}: {describe_type(key_types()[field.name][0])}"
    has_default = field.default is not False and field.default not in (None, "", dataclasses.MISSING)
    default = f" [{field.default}]" if has_default else ""
    return _entry(f"--{field.name}", text + default)


def _entry(option: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {option:<{COLUMN - 3}} ", subsequent_indent=" " * COLUMN)
