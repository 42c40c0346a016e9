"""The help text of `medcap train` and scripts/train.py."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from typing import Any

from medcap.recipe.arguments import MEDCAP_GROUPS, REPLACED, CaptionTrainingArguments
from medcap.recipe.values import describe, key_types

WIDTH, COLUMN = 100, 34
USAGE = """\
usage: medcap train --config RECIPE [--accelerate NAME] [--num_processes N] [--key value ...]
   or: accelerate launch scripts/train.py --config RECIPE [--key value ...]
Train the recipe of a YAML file. Options are keys of the file and override it. [Default values]"""
COMMAND = {
    "--config RECIPE": "YAML file of the recipe, see recipes/",
    "--accelerate NAME": "medcap train: recipes/accelerate/NAME.yaml or a file (CPU: cpu)",
    "--num_processes N": "medcap train: number of processes, usually that of the GPUs",
    "--debug": "show the traceback of an error",
    "--help, --help-all": "show the main keys, or every key, and exit",
}
TITLES = {"data": "data", "model": "model", "lora": "adapter", "generation": "generation"}
TRAINING = {  # the training keys of the short help; "" stands for the help of medcap's own field
    "output_dir": "",
    "num_train_epochs": "number of epochs",
    "learning_rate": "initial learning rate",
    "per_device_train_batch_size": "captions per step and device",
    "gradient_accumulation_steps": "steps per weight update",
    "seed": "seed of weights, order and dropout",
    "early_stopping_patience": "",
    "resume_from_checkpoint": "last, or the folder of a checkpoint",
    "allow_changes": "",
    "dry_run": "",
    "push_to_hub": "push every epoch to the Hub",
    "hub_overwrite": "",
}


def help_requested(arguments: list[str]) -> bool:
    """Return whether the arguments ask for the help."""
    return any(argument in ("-h", "--help", "--help-all") for argument in arguments)


def recipe_help(every_key: bool = False) -> str:
    """Return the help: the keys of medcap and the main keys of training, or with `every_key` all keys."""
    lines = [USAGE, *(line for option, text in COMMAND.items() for line in _entry(option, text))]
    for group, arguments in MEDCAP_GROUPS.items():
        lines += [f"{TITLES[group]}:", *(line for field in dataclasses.fields(arguments) for line in _key(field))]
    training = {field.name: field for field in dataclasses.fields(CaptionTrainingArguments) if field.init}
    hidden = REPLACED.keys() | {"bf16", "fp16"}  # precision is their replacement
    shown = {key: "" for key in training if key not in hidden} if every_key else TRAINING
    title = "training:" if every_key else "training (other keys of transformers.Seq2SeqTrainingArguments: --help-all):"
    return "\n".join([*lines, title, *(line for key, text in shown.items() for line in _key(training[key], text))])


def _key(field: dataclasses.Field[Any], text: str = "") -> list[str]:
    text = text or " ".join(field.metadata.get("help", "").split())
    if typing.get_origin(key_types()[field.name][0]) is typing.Literal and field.name != "trackio_static_space_id":
        text = f"{text}: {describe(key_types()[field.name][0])}"
    default = "" if field.default in (None, "", False, dataclasses.MISSING) else f" [{field.default}]"
    return _entry(f"--{field.name}", text + default)


def _entry(option: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {option:<{COLUMN - 3}} ", subsequent_indent=" " * COLUMN)
