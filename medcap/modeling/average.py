"""The average of LoRA adapters, as one adapter of PEFT that is exact.

A LoRA layer adds scaling * B @ A to a weight. The average of such products is not the product of the average A and the
average B, but that of the concatenated matrices: with A = [A1; A2] and B = [w1 s1 B1, w2 s2 B2], B @ A is the weighted
sum of the products, at the sum of the ranks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from medcap.io import read_json
from medcap.modeling.adapter import base_of
from medcap.recipe.adapter_rules import changes_base

# settings of LoraConfig that need not have their defaults; others change what a layer computes
PLAIN = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "lora_bias",
    "bias", "fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "base_model_name_or_path", "revision", "auto_mapping", "task_type",
    "inference_mode", "peft_type", "peft_version", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
SHARED = ("bias", "lora_bias", "fan_in_fan_out")  # settings that the average takes from the first adapter


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that can be averaged: its name in messages, adapter_config.json and weights by name."""

    name: str
    base: tuple[str, str | None]
    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path, name: str) -> Adapter:
        """Read an adapter; ValueError if it is none that can be averaged exactly."""
        if not (folder / CONFIG_NAME).is_file() or not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise ValueError(f"{name} is no adapter: it needs {CONFIG_NAME} and {SAFETENSORS_WEIGHTS_NAME}")
        config = read_json(folder / CONFIG_NAME)
        if config.get("peft_type") != "LORA":
            raise ValueError(f"{name} is a {config.get('peft_type')} adapter; only LoRA adapters can be averaged")
        defaults = LoraConfig().to_dict()
        for key, value in config.items():
            if key not in PLAIN and value != defaults.get(key):
                raise ValueError(f"{name} has {key} {value!r}: it adds no product B @ A, which an average needs")
        if changes_base(init := config.get("init_lora_weights", True)):
            raise ValueError(
                f"{name} is an adapter of a base that lora_init {init} changed; average RUN/adapter folders"
            )
        try:
            weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        except SafetensorError as error:
            raise ValueError(f"{name}: {SAFETENSORS_WEIGHTS_NAME} is damaged: {error}") from error
        return cls(name, base_of(str(folder)), config, weights)

    def scaling(self, layer: str) -> float:
        """Return the factor of B @ A in a layer, as PEFT computes it."""
        patterns = self.config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns, layer), self.config["lora_alpha"])
        rank = self.ranks[layer]
        return float(alpha / (rank**0.5 if self.config.get("use_rslora") else rank))

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer."""
        pairs = ((*_split(name), weight) for name, weight in self.weights.items())
        return {layer: len(weight) for layer, matrix, weight in pairs if matrix == "A"}


def average(adapters: Sequence[Adapter], fractions: Sequence[float]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return weights (float32) and adapter_config.json of the average of adapters of one base.

    Trained biases and `modules_to_save` are averaged themselves. The scaling is part of B, and that of the result 1.

    Args:
        adapters: At least one.
        fractions: Of each adapter; their sum is 1.

    Raises:
        ValueError: The adapters have different bases, layers, trained modules or kinds of bias.
    """
    first = adapters[0]
    for other in adapters[1:]:
        _check_same(first, other)
    weights = {name: _combined(name, adapters, fractions) for name in first.weights}
    ranks = {layer: sum(adapter.ranks[layer] for adapter in adapters) for layer in first.ranks}
    return weights, {**first.config, **_settings(ranks)}


def _check_same(first: Adapter, other: Adapter) -> None:
    if first.base != other.base:
        bases = ["@".join(filter(None, adapter.base)) for adapter in (other, first)]
        raise ValueError(f"{other.name} is an adapter of {bases[0]}, {first.name} of {bases[1]}: the bases must agree")
    if differing := sorted(first.weights.keys() ^ other.weights.keys()):
        owner = first if differing[0] in first.weights else other
        raise ValueError(
            f"{other.name} and {first.name} train different layers: only {owner.name} has {differing[0]}; "
            "lora_target_modules and lora_modules_to_save must agree"
        )
    for key in SHARED:
        if first.config.get(key) != other.config.get(key):
            raise ValueError(
                f"{other.name} has {key} {other.config.get(key)!r}, {first.name} {first.config.get(key)!r}"
            )


def _combined(name: str, adapters: Sequence[Adapter], fractions: Sequence[float]) -> torch.Tensor:
    """Return one weight of the average."""
    layer, matrix = _split(name)
    tensors = [adapter.weights[name].float() for adapter in adapters]
    if matrix == "A":
        return torch.cat(tensors)
    if layer:
        fractions = [fraction * adapter.scaling(layer) for adapter, fraction in zip(adapters, fractions, strict=True)]
    scaled = [fraction * tensor for fraction, tensor in zip(fractions, tensors, strict=True)]
    return torch.cat(scaled, 1) if matrix == "B" else torch.stack(scaled).sum(0)


def _split(name: str) -> tuple[str, str]:
    """Return layer and matrix (A, B, or bias for that of B) of a LoRA weight; blanks for another weight."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(.*)\.lora_(?:embedding_)?([AB])(\.weight|\.bias)?", name)
    if found is None:
        return "", ""
    return found[1], "bias" if found[3] == ".bias" else found[2]


def _settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings of these ranks with a scaling of 1; layers of another rank than most have a pattern."""
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != most}
    return {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "init_lora_weights": True,
    }
