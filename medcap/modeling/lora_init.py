"""Initializations that change the base: PiSSA (Meng et al., 2024) and OLoRA (Büyükakyüz, 2024).

PEFT subtracts the initial adapter from the weights of the base. An adapter of the plain base is saved: it adds the
trained adapter and subtracts the initial one, in one pair of matrices of twice the rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medcap.io import write_json
from medcap.recipe import RecipeError
from medcap.recipe.adapter_rules import changes_base, precision_conflict

Weights = Mapping[str, torch.Tensor]


def check_layers(base: nn.Module, names: list[str], init: bool | str) -> None:
    """Raise RecipeError if an initialization from the weights of the layers `names` would not be exact."""
    weight = base.get_submodule(names[0]).weight
    if changes_base(init) and weight.dtype != torch.float32:
        raise RecipeError(precision_conflict(init, str(weight.dtype).removeprefix("torch.")))
    if init == "olora":
        for name in names:
            if isinstance(base.get_submodule(name), Conv1D):
                raise RecipeError(f"lora_init olora does not support {name}, which is a Conv1D; use pissa")


def check_ranks(model: PeftModel, init: bool | str) -> None:
    """Raise RecipeError if a layer has fewer singular values than its rank; PEFT would lower the rank silently."""
    for name, layer in model.get_base_model().named_modules():
        if (
            changes_base(init)
            and hasattr(layer, "lora_A")
            and len(layer.lora_A["default"].weight) < layer.r["default"]
        ):
            most = len(layer.lora_A["default"].weight)
            raise RecipeError(f"lora_init {init} allows a rank of at most {most} in {name}; lower lora_r")


def initial_weights(model: PeftModel | PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a copy of the new adapter's weights if it was subtracted from the base; else an empty dict."""
    if not isinstance(model, PeftModel) or not changes_base(model.peft_config["default"].init_lora_weights):
        return {}
    return {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items() if ".lora_" in name}


def load_initial_adapter(model: PeftModel, folder: str) -> None:
    """Give the new adapter of `model` the weights of a saved one.

    Raises RecipeError if the folder has no adapter, or one whose settings or layers differ.
    """
    if not (Path(folder) / CONFIG_NAME).is_file():
        raise RecipeError(
            f"init_adapter: {folder} is not a folder with an adapter ({CONFIG_NAME}), such as RUN/adapter"
        )
    saved, own = PeftConfig.from_pretrained(folder), model.peft_config["default"]
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if (old := getattr(saved, name)) != (new := getattr(own, name)):
            raise RecipeError(f"init_adapter: {folder} has {name} {old}, and the recipe {new}: give both the same")
    weights, needed = load_peft_weights(folder, device="cpu"), get_peft_model_state_dict(model)
    shapes = {name: weight.shape for name, weight in weights.items()}
    if (
        differ := {name for name, weight in needed.items() if shapes.get(name) != weight.shape}
        | shapes.keys() - needed
    ):
        raise RecipeError(
            f"init_adapter: {folder} and the recipe differ in {min(differ)}: give the model_name_or_path, "
            "lora_target_modules and lora_modules_to_save of the run that wrote it"
        )
    set_peft_model_state_dict(model, weights)


def save_weights(
    model: PeftModel | PreTrainedModel, folder: Path, initial: Weights, gathered: Weights | None = None
) -> None:
    """Write the adapter, or a whole model, to `folder`; with `initial` weights an adapter of the unchanged base.

    `gathered` holds all weights of a model that is sharded (see `medcap.training.sharding`).
    """
    model.save_pretrained(folder, state_dict=gathered)
    if not initial:
        return
    weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    for name in weights.keys() & initial.keys():
        if "lora_A" in name:
            weights[name] = torch.cat([weights[name], initial[name]])
        elif "lora_B" in name:
            weights[name] = torch.cat([weights[name], -initial[name]], 1)
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    write_json(folder / CONFIG_NAME, {**config, **_doubled(config)})


def _doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of twice the rank with the same scaling."""
    factor = math.sqrt(2) if config["use_rslora"] else 2
    return {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in config["alpha_pattern"].items()},
    }
