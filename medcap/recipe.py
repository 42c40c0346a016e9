"""A recipe: one YAML file that says how one published model is made.

A recipe file is a command line written down: every key is an option of the same name, options given on the command
line come after those of the file and win, and both go through one parser, so both are checked alike. Keys of
training are those of `transformers.Seq2SeqTrainingArguments`; the others are below.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from medcap.io import write_text


class RecipeError(ValueError):
    """The recipe or its overrides are wrong: nothing was started. The command line ends with status 2."""


@dataclass
class DataArguments:
    """Which captions and pictures, and how many of them."""

    data_dir: str = field(default="", metadata={"help": "a folder, a CSV file, or a data set's name on the Hub"})
    data_format: Literal["auto", "rocov2", "imagefolder", "csv", "hub"] = field(
        default="auto", metadata={"help": "how it is laid out; auto: as found"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "where images stand; none: file_name, on the Hub image"}
    )
    caption_column: str | None = field(default=None, metadata={"help": "where captions stand; none: caption"})
    group_column: str | None = field(
        default=None, metadata={"help": "patient or study: splits that are made have no group in common"}
    )
    valid_fraction: float = field(default=0.1, metadata={"help": "share for validation where no splits are given"})
    test_fraction: float = field(default=0.1, metadata={"help": "share for the test where no splits are given"})
    split_seed: int = field(default=0, metadata={"help": "which shares: the same seed makes the same splits"})
    license_filter: Literal["any", "commercial"] = field(
        default="any", metadata={"help": "commercial: images whose licence allows it, and no others"}
    )
    dedupe: bool = field(default=False, metadata={"help": "of pictures that are nearly the same, only the first"})
    exclude_leaks: bool = field(
        default=False, metadata={"help": "train without pictures, articles and patients of valid and test"}
    )
    train_fraction: float = field(default=1.0, metadata={"help": "share of the training split, above 0, at most 1"})
    fraction_seed: int = field(
        default=0, metadata={"help": "which share: the same seed takes the same ids everywhere"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "at most so many training images"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "at most so many validation images"})
    max_broken: float = field(default=0.001, metadata={"help": "stop above this share of missing or broken images"})
    max_caption_tokens: int = field(
        default=96, metadata={"help": "cut training captions here, [DEC] and [SEP] counted"}
    )
    prompt: str = field(default="", metadata={"help": "words that every caption starts with, given and not learned"})


@dataclass
class ModelArguments:
    """Which base, at what size and precision, and whether what its frozen eyes see is kept."""

    model_name_or_path: str = field(default="", metadata={"help": "a BLIP captioner: Hub name or folder"})
    model_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the base on the Hub"})
    image_size: int | None = field(default=None, metadata={"help": "pixels a side; none: the size of the base"})
    quantization: Literal["none", "8bit", "4bit"] = field(
        default="none", metadata={"help": "of the text decoder's frozen weights (bitsandbytes)"}
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "of the computation; auto: bf16 or fp16 where the device is made for it"}
    )
    model_code: Literal["fast", "plain"] = field(
        default="fast", metadata={"help": "fast: medcap's faster BLIP modules; plain: those of transformers"}
    )
    feature_cache: str = field(
        default="auto", metadata={"help": "each image is encoded once: auto, off, or the folder to keep features in"}
    )


@dataclass
class LoraArguments:
    """The adapter (Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models")."""

    lora_r: int = field(default=16, metadata={"help": "rank"})
    lora_alpha: float = field(default=32, metadata={"help": "scale: updates are multiplied by alpha / r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before the adapter, 0 to 1"})
    lora_target_modules: str = field(
        default="attention", metadata={"help": "a named set of medcap.modeling.lora.TARGETS, or a regular expression"}
    )


@dataclass
class GenerationArguments:
    """How captions are generated, named as in `transformers.GenerationConfig`."""

    num_beams: int = field(default=4, metadata={"help": "1 is greedy"})
    max_new_tokens: int = field(default=64, metadata={"help": "tokens a caption may have"})
    no_repeat_ngram_size: int = field(default=0, metadata={"help": "no n-gram of this size twice; 0: no limit"})
    length_penalty: float = field(default=1.0, metadata={"help": "above 0 favours long captions, with beams"})


@dataclass
class CaptionTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults that captioning needs."""

    output_dir: str = field(default="", metadata={"help": "the run's folder; a run of the same recipe goes on"})
    eval_strategy: str = field(default="epoch", metadata={"help": "generate and score captions: no, epoch or steps"})
    save_strategy: str = field(default="epoch", metadata={"help": "write a checkpoint: no, epoch or steps"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "the adapter is the best epoch's"})
    metric_for_best_model: str | None = field(default="cider", metadata={"help": "a caption metric, or loss"})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, wandb, trackio, ..."})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines of the log"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "must stay false: the transform needs the image"}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "evaluate by generating captions"})
    disable_tqdm: bool | None = field(default=False, metadata={"help": "no progress bar"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many worse evaluations"}
    )
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "random, or batches of captions of about one length"}
    )
    dataloader_num_workers: int = field(
        default=-1, metadata={"help": "processes that read images; -1: up to 8 beside a GPU, none beside a CPU"}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "look after each step for adapters that took no part in it: there are none"}
    )
    hub_overwrite: bool = field(
        default=False, metadata={"help": "with push_to_hub: replace what a repository holds that medcap did not make"}
    )
    allow_changes: bool = field(
        default=False, metadata={"help": "go on with a run although its recipe, data or base changed since it began"}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a non-finite loss stops the run"})
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={"help": "BLIP's buffers never change, and a process that runs out of memory works alone"},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "do everything once in a folder that goes away, and print the plan"}
    )

    def __post_init__(self) -> None:
        """Settle the device of processes without a GPU, and the number of workers, which stay from epoch to epoch."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # or accelerate lets them not know of each other, and each does all of the work
        super().__post_init__()
        if self.dataloader_num_workers < 0:
            cores = (os.cpu_count() or 1) // self.world_size
            self.dataloader_num_workers = 0 if self.device.type == "cpu" else min(8, cores)
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs to know. `given` holds the keys that the file and the command line set."""

    data: DataArguments
    model: ModelArguments
    lora: LoraArguments
    generation: GenerationArguments
    training: CaptionTrainingArguments
    given: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """The resolved recipe, flat: all keys of medcap, and of the Trainer's those that were given.

        That a run was gone on with is left out: it says nothing of what is made, and in another folder it would stop.
        So is whether it was only tried.
        """
        own = {k: v for part in (self.data, self.model, self.lora, self.generation) for k, v in vars(part).items()}
        passing = {"resume_from_checkpoint", "allow_changes", "dry_run"}
        trainer = {k: getattr(self.training, k) for k in sorted(self.given - own.keys() - passing)}
        return {k: _plain(v) for k, v in {**own, **trainer}.items() if v is not None}

    def value(self, key: str) -> Any:
        """What a key is, given or not, as YAML has it."""
        parts = (self.data, self.model, self.lora, self.generation, self.training)
        return _plain(next(getattr(part, key) for part in parts if hasattr(part, key)))

    def save(self, path: Path) -> None:
        """Write the resolved recipe, ready to be run again; whole or not at all."""
        write_text(path, yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Enums and the like become what YAML can hold, and what the parser reads as the same value."""
    if value == []:  # what the Trainer makes of report_to: none; a key without a word is no option
        return "none"
    value = value.to_dict() if hasattr(value, "to_dict") else getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


REQUIRED = ("data_dir", "model_name_or_path", "output_dir")
# what people still write, and what transformers 5 (or medcap) has in its place
REPLACED = {
    "warmup_ratio": "warmup_steps: a value below 1 is a share of all steps",
    "evaluation_strategy": "eval_strategy",
    "overwrite_output_dir": "another output_dir, or resume_from_checkpoint: last",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use_cpu",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "generation_num_beams": "num_beams",
    "generation_max_length": "max_new_tokens",
    "generation_config": "num_beams, max_new_tokens, no_repeat_ngram_size and length_penalty",
    "hub_token": "`hf auth login` or the environment variable HF_TOKEN: a recipe is published, a token is not",
    "hub_strategy": "push_to_hub: true, which pushes every epoch as a revision of its own, and the best as main",
    "hub_always_push": "push_to_hub: true, which pushes every epoch whatever else is being pushed",
    "hub_revision": "push_to_hub: true: the revisions are called epoch-1, epoch-2, ... and main",
    "fraction": "train_fraction",
    "target_modules": "lora_target_modules",
}


class _RecipeParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(message.removeprefix("argument "))


def recipe_parser() -> HfArgumentParser:
    """Return the parser of every key a recipe may have."""
    parts = [DataArguments, ModelArguments, LoraArguments, GenerationArguments, CaptionTrainingArguments]
    return _RecipeParser(
        parts, allow_abbrev=False, prog="train.py", usage="train.py --config RECIPE [--any_key value]"
    )


def read_recipe(overrides: list[str]) -> Recipe:
    """Read ["--config", FILE, "--learning_rate", "1e-4", ...]: the YAML file, then what replaces its keys; check all.

    Raises RecipeError, one line: which key, its value, what is allowed or the nearest right name.
    """
    parser = recipe_parser()
    known = {action.dest for action in parser._actions} - REPLACED.keys()
    config, overrides = _take_config(overrides)
    written = read_yaml(Path(config)) if config is not None else {}
    spoken = [word[2:].partition("=")[0].replace("-", "_") for word in overrides if word.startswith("--")]
    spoken = [key.removeprefix("no_") if key.removeprefix("no_") in known else key for key in spoken]
    for key in [*written, *spoken]:
        _check_known(key, known, config if key in written else "command line")
    words = [word for key, value in written.items() for word in _as_words(key, value)]
    try:
        *parts, rest = parser.parse_args_into_dataclasses(
            words + overrides, return_remaining_strings=True, look_for_args_file=False
        )
    except Exception as error:  # the Trainer's arguments raise errors of all kinds
        raise RecipeError(f"{config or 'command line'}: {_one_line(error)}") from error
    if rest:
        raise RecipeError(f"command line: cannot make sense of {' '.join(rest)!r}; write --key value")
    data, model, lora, generation, training = parts
    given = frozenset([*written, *spoken])
    return _checked(Recipe(data, model, lora, generation, training, given))


def _take_config(words: list[str]) -> tuple[str | None, list[str]]:
    """Part `--config FILE` from the other words."""
    parser = _RecipeParser([], allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    found, rest = parser.parse_known_args(words)
    return found.config, rest


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, unchecked; RecipeError for what cannot be read, or is no list of `key: value` lines.

    Names for values (`&name`, `*name`) are refused: a few lines of them stand for more text than any memory holds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > 1000:  # the time that PyYAML takes grows with the square of their depth
            raise RecipeError(f"{path}: not a recipe: more than 1,000 brackets")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError(f"{path}: a recipe has no aliases (*name): write the value where it is used")
        content = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except RecursionError:
        raise RecipeError(f"{path}: not a recipe: values are nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a YAML file: {_one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines, got {type(content).__name__}")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_known(key: str, known: set[str], where: str | Path | None) -> None:
    if key in REPLACED:
        raise RecipeError(f"{where}: there is no key {key!r}; use {REPLACED[key]}")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0)
        raise RecipeError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")


def _as_words(key: str, value: Any) -> list[str]:
    """Write `key: value` as a command line would have it."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if key.endswith("_strategy") and value is False:
        raise RecipeError(f'{key}: YAML reads a bare no as false; quote it: {key}: "no"')
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _checked(recipe: Recipe) -> Recipe:
    everything = {
        k: v for part in vars(recipe).values() if dataclasses.is_dataclass(part) for k, v in vars(part).items()
    }
    for key in REQUIRED:
        if not everything[key]:
            raise RecipeError(f"{key} is missing: write it into the recipe or give --{key}")
    check_ranges(everything)
    if not 0 < recipe.data.train_fraction <= 1:
        raise RecipeError(f"train_fraction is {recipe.data.train_fraction}; allowed is above 0, at most 1")
    made = recipe.data.valid_fraction + recipe.data.test_fraction
    if made >= 1:
        raise RecipeError(f"valid_fraction and test_fraction are {made:g} together; below 1 leaves something to train")
    if clash := recipe.given & {"bf16", "fp16"}:
        if "precision" in recipe.given:
            raise RecipeError(f"precision and {min(clash)} say the same twice: keep precision")
        name = "bf16" if recipe.training.bf16 else "fp16" if recipe.training.fp16 else "fp32"
        recipe.model.precision = name  # type: ignore[assignment]
    if recipe.training.remove_unused_columns:
        raise RecipeError("remove_unused_columns must be false: the image column would be gone before the collator")
    _check_push(recipe.training)
    return recipe


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise RecipeError for a value of a recipe's key that is outside what is allowed; None is no value."""
    for key, (lowest, highest) in RANGES.items():
        value = values.get(key)
        if value is not None and not lowest <= value <= highest:
            raise RecipeError(f"{key} is {value}; allowed is {lowest} to {highest}")


def _check_push(training: CaptionTrainingArguments) -> None:
    """With push_to_hub, what is pushed is an epoch's adapter with the captions that it was evaluated by."""
    if not training.push_to_hub:
        return
    for key in ("eval_strategy", "save_strategy"):
        if (value := str(getattr(getattr(training, key), "value", getattr(training, key)))) != "epoch":
            raise RecipeError(f"push_to_hub pushes each epoch once it is evaluated and saved: {key} is {value!r}")
    if not training.predict_with_generate:
        raise RecipeError("push_to_hub pushes each epoch's captions too: predict_with_generate must be true")


RANGES = {
    "valid_fraction": (0, 1),
    "test_fraction": (0, 1),
    "max_broken": (0, 1),
    "max_caption_tokens": (3, 512),
    "max_train_samples": (1, math.inf),
    "max_eval_samples": (1, math.inf),
    "image_size": (16, 4096),
    "lora_r": (1, 1024),
    "lora_dropout": (0, 1),
    "num_beams": (1, 64),
    "max_new_tokens": (1, 511),
    "no_repeat_ngram_size": (0, 64),
    "early_stopping_patience": (1, math.inf),
}
