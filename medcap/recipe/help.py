"""The help text of `medcap train` and scripts/train.py."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from typing import Any

from medcap.recipe.arguments import GROUPS, REPLACED
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


def recipe_help(every_key: bool = False) -> str:
    """Return the help: the keys of medcap and the main keys of training, or with `every_key` all keys."""
    hidden = REPLACED.keys() | {"bf16", "fp16"}  # precision is their replacement
    lines = [USAGE, *(line for option, text in COMMAND.items() for line in _entry(option, text))]
    for group, arguments in GROUPS.items():
        keys = {field.name: field for field in dataclasses.fields(arguments) if field.init}
        shown = {key: "" for key in keys if key not in hidden}
        if group == "training" and not every_key:
            group, shown = "training (other keys of transformers.Seq2SeqTrainingArguments: --help-all)", TRAINING
        lines += [f"{group}:", *(line for key, text in shown.items() for line in _key(keys[key], text))]
    return "\n".join(lines)


def _key(field: dataclasses.Field[Any], text: str = "") -> list[str]:
    text = text or " ".join(field.metadata.get("help", "").split())
    if typing.get_origin(key_types()[field.name][0]) is typing.Literal and field.name != "trackio_static_space_id":
        text = f"{text}: {describe(key_types()[field.name][0])}"
    default = "" if field.default in (None, "", False, dataclasses.MISSING) else f" [{field.default}]"
    return _entry(f"--{field.name}", text + default)


def _entry(option: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {option:<{COLUMN - 3}} ", subsequent_indent=" " * COLUMN)
