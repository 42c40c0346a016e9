"""What the files of an adapter tell a card: its kind of base, the trained layers, and how its tokenizer writes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from medcap.io import read_json
from medcap.logs import error_line
from medcap.modeling.families import FAMILIES, kind_of


def base_kind(adapter: Path, adapter_config: Mapping[str, Any], base: PreTrainedConfig | None) -> str:
    """Return the model type of an adapter's base, from the class that PEFT recorded or from the base's config.

    Raises:
        ValueError: It is not that of a captioner that medcap knows.
    """
    name = (adapter_config.get("auto_mapping") or {}).get("base_model_class", "")
    config = getattr(getattr(transformers, name, None), "config_class", None) or base
    kind = kind_of(config)
    if kind not in FAMILIES:
        found = f"its base is a {name or kind or 'model of an unknown class'}"
        raise ValueError(f"{adapter} is no adapter that medcap can publish: {found}; known are {', '.join(FAMILIES)}")
    return kind


def trained_layers(weights: Path) -> dict[str, tuple[int, int]]:
    """Return the trained layers of an adapter by kind, as in "NAME.*.NAME": their number and that of parameters.

    Raises:
        ValueError: The file is not safetensors.
    """
    layers: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for key, size in _sizes(weights).items():
        name = key.removeprefix("base_model.model.")
        layer = re.split(r"(?:^|\.)lora_", name)[0] if "lora_" in name else name.rpartition(".")[0]
        kind = re.sub(r"\.\d+(?=\.)", ".*", layer)
        layers.setdefault(kind, set()).add(layer)
        sizes[kind] = sizes.get(kind, 0) + size
    return {kind: (len(names), sizes[kind]) for kind, names in layers.items()}


def _sizes(weights: Path) -> dict[str, int]:
    try:
        with safe_open(weights, framework="pt") as tensors:
            return {key: math.prod(tensors.get_slice(key).get_shape()) for key in sorted(tensors.keys())}
    except SafetensorError as error:
        raise ValueError(f"{weights.name} is not in the format of its suffix: {error_line(error)}") from None


def tokenizer_traits(path: Path) -> tuple[bool, bool]:
    """Return `tokenizer_adds_spaces` and `tokenizer_lowercases` of `CardData` for a tokenizer.json."""
    tokenizer = read_json(path) if path.is_file() else {}
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    adds_spaces = (tokenizer.get("decoder") or {}).get("type") == "WordPiece"
    return adds_spaces, any(step.get("lowercase") or step.get("type") == "Lowercase" for step in steps)
