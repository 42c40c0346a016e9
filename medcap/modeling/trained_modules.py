"""Modules of the base that are trained completely and saved with the adapter (PEFT's `modules_to_save`).

The head of most captioners is tied to the word embeddings. PEFT's `ensure_weight_tying` (0.21) does not recognize the
names of BLIP's, and would drop the bias of its head. Both are therefore saved, with the same weight, and PEFT loads
them without a special setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from medcap.recipe import RecipeError

KEY = "lora_modules_to_save"


def find_modules(model: PreTrainedModel, names: Iterable[str], layers: Sequence[str]) -> list[str]:
    """Return the complete names of the modules to train, with the head if it is tied to one of them, or vice versa.

    Args:
        model: The base.
        names: Complete names, or their ends from a dot on.
        layers: The layers with an adapter.

    Raises:
        RecipeError: A name is that of no module with weights, or its weights are also those of another module or of a
            layer with an adapter, or are quantized.
    """
    modules = {name: module for name, module in model.named_modules() if name and [*module.parameters()]}
    found: list[str] = []
    for name in names:
        matches = [module for module in modules if f".{module}".endswith(f".{name}")]
        if not matches:
            known = sorted({end for end in (module.rpartition(".")[2] for module in modules) if not end.isdigit()})
            raise RecipeError(f"{KEY} has {name!r}, which is no module with weights; allowed are {', '.join(known)}")
        found += [module for module in matches if module not in found]
    tied = _tied_names(model)
    found += [name for name in tied if set(tied) & set(found) and name not in found]
    _check_overlap(found, tied, layers)
    for name in found:
        if not all(weight.is_floating_point() for weight in modules[name].parameters()):
            raise RecipeError(f"{KEY} trains {name}, whose weights are quantized; set quantization: none")
    return found


def _check_overlap(found: Sequence[str], tied: Sequence[str], layers: Sequence[str]) -> None:
    """Raise RecipeError if a module is a layer with an adapter, or contains one, a tied or another trained module."""
    for name in found:
        if name in layers:
            raise RecipeError(f"{KEY} trains {name}, which has an adapter: list other modules or lora_target_modules")
        parts = (*found, *tied, *layers)
        if inside := next((part for part in parts if part.startswith(f"{name}.")), None):
            raise RecipeError(f"{KEY} trains {name} with {inside}, which is tied, listed too, or has an adapter")


def _tied_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the word embeddings and of the modules with the same weight, if there are any."""
    shared = model.get_input_embeddings().weight
    names = [name for name, module in model.named_modules() if getattr(module, "weight", None) is shared]
    return names if len(names) > 1 else []


def prepare_training(adapted: PeftModel) -> None:
    """Convert the trained modules to float32, and tie the trained head to the trained embeddings.

    Their output has the dtype of the base. The head's bias is not trained: BLIP's is also `cls.predictions.bias`,
    which PEFT does not save.
    """
    model = adapted.get_base_model()
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for module in wrappers:
        dtype = next(module.original_module.parameters()).dtype
        if dtype != torch.float32:
            trained_copy(module).float().register_forward_hook(partial(_cast_output, dtype))
    embeddings: Any = model.get_input_embeddings()
    if not isinstance(embeddings, ModulesToSaveWrapper):
        return
    shared = embeddings.original_module.weight
    for module in wrappers:
        if module is not embeddings and getattr(module.original_module, "weight", None) is shared:
            tied = trained_copy(module)
            tied.weight = trained_copy(embeddings).weight
            if getattr(tied, "bias", None) is not None:
                tied.bias.requires_grad_(False)


def trained_copy(module: ModulesToSaveWrapper) -> Any:
    """Return the copy of a module that the active adapter trains."""
    return module.modules_to_save[module.active_adapter]


def _cast_output(dtype: torch.dtype, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_cast_output(dtype, _module, _inputs, part) for part in output)
    return output.to(dtype) if isinstance(output, torch.Tensor) else output
