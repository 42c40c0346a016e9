"""The files of an adapter in a folder: its base, image size, generation settings and recipe.

medcap writes all of them. PEFT alone writes only the adapter and its config; the base then determines the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig

from medcap.io import read_json
from medcap.modeling.generation import EXTRA_SETTINGS, NO_EFFECT, extra_settings
from medcap.modeling.load import check_model_name
from medcap.recipe import GenerationArguments, RecipeError, check_saved, read_yaml

GENERATION = "generation_config.json"
AVERAGE = "average.json"  # of an adapter that is an average: the adapters and their weights
PROCESSORS = ("processor_config.json", "preprocessor_config.json")

# settings that medcap cannot apply, with the values that change nothing
UNSUPPORTED_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "token_healing": False,
    "guidance_scale": 1.0,
}


def trained_folder(run: Path) -> Path:
    """Return the folder of a run with what it has trained: its adapter, or a whole model."""
    return run / "model" if (run / "model").exists() else run / "adapter"


def is_trained(model: str) -> bool:
    """Return whether medcap has trained a model: an adapter or a whole model."""
    return _has(model, "recipe.yaml")


def has_adapter(model: str) -> bool:
    """Return whether a folder has a PEFT adapter; FileNotFoundError if it has no model."""
    return _has(check_model_name(model), "adapter_config.json")


def _has(adapter: str, name: str) -> bool:
    return (Path(adapter) / name).is_file()


def _file(adapter: str, name: str) -> Path | None:
    """Return the path of a file of the adapter; None if it has none."""
    return Path(adapter) / name if _has(adapter, name) else None


def base_of(adapter: str) -> tuple[str, str | None]:
    """Return name and revision of the base of an adapter. In a release, a local base is named by its folder only."""
    config = PeftConfig.from_pretrained(adapter)
    name = config.base_model_name_or_path or ""
    if not name:
        raise ValueError(f"{adapter} does not name its base model: give it with --base")
    beside = Path(adapter).resolve().parent / name
    if Path(adapter).is_dir() and "/" not in name and beside.is_dir():
        return str(beside), None
    return name, config.revision


def image_size_of(adapter: str) -> int | None:
    """Return the image size in pixels per side that the adapter was trained with; None if it names no such size.

    A processor that crops images was not given a size by medcap.
    """
    for path in filter(None, (_file(adapter, name) for name in PROCESSORS)):
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings = settings.get("image_processor", settings)
        size = None if settings.get("do_center_crop") else settings.get("size")
        if isinstance(size, dict) and size.get("height") and size["height"] == size.get("width"):
            return int(size["height"])
    return None


def saved_generation(adapter: str) -> dict[str, Any]:
    """Return the adapter's generation settings: keys of `GenerationArguments`, EXTRA_SETTINGS, and `max_length`.

    What generation_config.json does not set is left to the caller.

    Raises:
        RecipeError: It sets something that medcap cannot apply.
    """
    path = _file(adapter, GENERATION)
    saved = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    own = {*vars(GenerationArguments()), "max_length"}
    settings = {key: value for key, value in saved.items() if key in own and value is not None}
    for key, value in saved.items():
        is_neutral = value is None or key in NO_EFFECT or value == UNSUPPORTED_NEUTRAL.get(key)
        if key not in own | EXTRA_SETTINGS.keys() and not is_neutral:
            raise RecipeError(
                f"{GENERATION} of {adapter} sets {key} to {value!r}, which medcap cannot apply: remove it there"
            )
    return {**settings, **extra_settings(saved)}


def adapter_recipe(adapter: str) -> dict[str, Any]:
    """Return the recipe of an adapter (folder or Hub name); empty if it was trained without medcap.

    That of an average also has "averaged", the weights of its adapters: it is another system than one of them.

    Raises:
        RecipeError: A value that captions depend on is not allowed, such as a prompt of 200,000 words.
    """
    path = _file(adapter, "recipe.yaml")
    if path is None:
        return {}
    recipe = read_yaml(path)
    check_saved(recipe, str(path))
    if (averaged := _file(adapter, AVERAGE)) is None:
        return recipe
    return {**recipe, "averaged": [part["weight"] for part in read_json(averaged)["adapters"]]}
