"""Reading a recipe: a YAML file, overridden by command-line options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import yaml

from medcap.logs import error_line
from medcap.recipe.arguments import GROUPS, REPLACED, Recipe, RecipeError, check_values
from medcap.recipe.help import TRAINING, recipe_help
from medcap.recipe.rules import faults
from medcap.recipe.suggestions import closest
from medcap.recipe.values import convert, key_types

COMMAND_LINE = "command line"
REQUIRED = ("data_dir", "model_name_or_path", "output_dir")
MAX_BYTES, MAX_ITEMS = 2_000_000, 10_000  # PyYAML reads about 10,000 items per second
MAX_BRACKETS = 1000  # the time PyYAML needs grows with the square of the nesting depth


def read_recipe(overrides: list[str], changes: Mapping[str, Any] | None = None, source: str = "") -> Recipe:
    """Read a recipe from command-line arguments; prints the help and exits for --help and --help-all.

    Args:
        overrides: arguments such as ["--config", FILE, "--learning_rate", "1e-4"]. Options override keys of the file.
        changes: values that override both, such as those of a trial.
        source: what errors call the origin of `changes`.

    Raises:
        RecipeError: one line with the source (the file or the command line), the key, its value and what is allowed.
    """
    if {"-h", "--help", "--help-all"} & set(overrides):
        print(recipe_help(every_key="--help-all" in overrides))
        raise SystemExit(0)
    with _error_source(COMMAND_LINE):
        options = _read_options(overrides)
    config = options.pop("config", None)
    content = {} if config is None else read_yaml(Path(config))
    changes = changes or {}
    sources = {**dict.fromkeys(content, str(config)), **dict.fromkeys(options, COMMAND_LINE)}
    sources |= dict.fromkeys(changes, source)
    values = {}
    for key, value in {**content, **options, **changes}.items():
        with _error_source(sources[key]):
            check_known(key)
            if value is not None:
                values[key] = convert(key, value)
    _merge_precision(values, sources)
    _check_values(values, sources)
    return _build(values, sources)


@contextmanager
def _error_source(source: str) -> Iterator[None]:
    """Add the source of a key to the message of a RecipeError."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def read_yaml(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """Read the keys of a recipe, or of another `kind` of file, without checking them.

    Aliases (`*name`) are refused because a few lines of them can expand to more text than memory holds.

    Raises:
        RecipeError: the file cannot be read, is too large, has a key twice, or is not a mapping with text keys.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path}: not a {kind}: larger than {MAX_BYTES / 1e6:g} MB")
        text = content.decode("utf-8")
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise RecipeError(f"{path}: not a {kind}: more than {MAX_BRACKETS:,} brackets")
        if text.count("\n") + text.count(",") > MAX_ITEMS:
            raise RecipeError(f"{path}: not a {kind}: more than {MAX_ITEMS:,} lines and commas")
        events = yaml.parse(text, yaml.SafeLoader) if "*" in text else ()
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            raise RecipeError(f"{path}: aliases (*name) are not allowed in a {kind}: repeat the value instead")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        names = [str(key.value) for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
        values = None if root is None else loader.construct_document(root)
    except OSError as error:
        advice = "; `medcap recipes copy` writes a shipped one" if isinstance(error, FileNotFoundError) else ""
        raise RecipeError(f"{path}: cannot read the {kind}: {error.strerror}{advice}") from error
    except RecursionError:
        raise RecipeError(f"{path}: not a {kind}: values are nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"{path}: a {kind} is a list of `key: value` lines, got {type(values).__name__}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RecipeError(f"{path}: the key {twice[0]!r} is there twice; remove one")
    return values


def _read_options(arguments: list[str]) -> dict[str, Any]:
    """Return {key: text, list of texts, or bool} from `--key value ...`, `--key=value`, `--key` and `--no_key`."""
    options: dict[str, list[str] | bool] = {}
    texts: list[str] | None = None  # values of the last option; None if it takes no more
    for argument in arguments:
        if not argument.startswith("--"):
            if texts is None:
                raise RecipeError(f"unexpected argument {argument!r}; write --key value")
            texts.append(argument)
            continue
        name, has_value, text = argument[2:].partition("=")
        key = name.replace("-", "_")
        negated = key.removeprefix("no_")
        if key not in key_types() and bool in key_types().get(negated, ()) and not has_value:
            options[negated], texts = False, None
            continue
        if key != "config":
            check_known(key)
        texts = None if has_value else []
        options[key] = [text] if texts is None else texts
    return {key: value if isinstance(value, bool) else _option_value(key, value) for key, value in options.items()}


def _option_value(key: str, texts: list[str]) -> str | list[str] | bool:
    allowed = key_types().get(key, (str,))
    if not texts and bool in allowed:
        return True
    if not texts:
        raise RecipeError(f"--{key} needs a value")
    if len(texts) > 1 and not any(get_origin(kind) is list for kind in allowed):
        raise RecipeError(f"unexpected argument {texts[1]!r} after --{key} {texts[0]}; quote the value")
    return texts if len(texts) > 1 else texts[0]


def check_saved(values: Mapping[str, Any], source: str) -> None:
    """Raise RecipeError for a value of the data or the model in a saved recipe that is not allowed.

    Other keys, such as those of another version of medcap, are not checked: captions do not depend on them.
    """
    with _error_source(source):
        for group in ("data", "model"):
            for key in {field.name for field in fields(GROUPS[group])} & values.keys():
                if values[key] is not None:
                    check_values({key: convert(key, values[key])})


def check_known(key: str) -> None:
    """Raise RecipeError for a key that a recipe cannot have, with the closest one."""
    if key in REPLACED:
        raise RecipeError(f"there is no key {key!r}; use {REPLACED[key]}")
    if key not in key_types():
        known = sorted(key_types().keys() - REPLACED.keys())
        own = {field.name for name, group in GROUPS.items() if name != "training" for field in fields(group)}
        raise RecipeError(f"unknown key {key!r}; did you mean {closest(key, known, own | TRAINING.keys())!r}?")


def _merge_precision(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Replace the Trainer's bf16 and fp16 by `precision`."""
    flags = [key for key in ("bf16", "fp16") if key in values]
    if flags and "precision" in values:
        raise RecipeError(f"{sources[flags[0]]}: {flags[0]} and precision set the same thing: remove {flags[0]}")
    enabled = [key for key in flags if values.pop(key)]
    if len(enabled) > 1:
        raise RecipeError(f"{sources['bf16']}: bf16 and fp16 are both true; set precision to one of them")
    for key in flags:
        values["precision"], sources["precision"] = (*enabled, "fp32")[0], sources.pop(key)


def _check_values(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Raise RecipeError for values that their keys do not allow, and for a missing key."""
    for key, value in values.items():
        with _error_source(sources[key]):
            check_values({key: value})
    for key in REQUIRED:
        if not values.get(key):
            raise RecipeError(f"{key} is missing: write it into the recipe or give --{key}")


def _build(values: Mapping[str, Any], sources: Mapping[str, str]) -> Recipe:
    try:
        groups: dict[str, Any] = {
            name: group(**{field.name: values[field.name] for field in fields(group) if field.name in values})
            for name, group in GROUPS.items()
        }
    except Exception as error:  # Seq2SeqTrainingArguments raises errors of many types
        line = error_line(error)
        raise RecipeError(f"{_sources_of(re.findall(r'[a-z0-9_]+', line), sources)}: {line}") from error
    recipe = Recipe(**groups, given=frozenset(sources))
    for keys, fault in faults(recipe):
        raise RecipeError(f"{_sources_of(keys, sources)}: {fault}")
    return recipe


def _sources_of(keys: Iterable[str], sources: Mapping[str, str]) -> str:
    """Return where the keys of an error were given, or if none of them was, all sources."""
    found = {sources[key] for key in keys if key in sources} or set(sources.values())
    return " and ".join(sorted(found, key=lambda source: source == COMMAND_LINE)) or COMMAND_LINE
