"""LoRA adapters: attaching and describing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medcap.modeling.blip_fast import BitDropout
from medcap.modeling.families import family_of
from medcap.modeling.full import full_summary, trained_parts
from medcap.modeling.lora_init import check_layers, check_ranks
from medcap.modeling.lora_options import check_patterns
from medcap.modeling.trained_modules import find_modules, prepare_training
from medcap.recipe import RecipeError


def add_lora(
    model: PreTrainedModel,
    *,
    targets: str,
    r: int,
    alpha: float,
    dropout: float,
    revision: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> PeftModel:
    """Freeze `model` and put LoRA adapters on the linear layers that `targets` names.

    Args:
        model: The base; it is changed in place.
        targets: A key of `Family.targets` or a regular expression for complete module names.
        r: Rank.
        alpha: Updates are multiplied by alpha / r.
        dropout: Dropout before the adapter.
        revision: Of the base, saved with the adapter.
        options: Other arguments of LoraConfig, from `medcap.modeling.lora_options`.

    Raises:
        RecipeError: `targets` matches no linear layer, or the head, which is tied to the embeddings: merging would
            change them; a pattern or module of `options` matches nothing; or the initialization does not suit the
            layers.
    """
    roles = family_of(model).targets
    pattern = roles.get(targets, targets)
    names = _matching_layers(model, pattern)
    if not names:
        raise RecipeError(f"lora_target_modules {targets!r} matches no linear layer; use one of {', '.join(roles)}")
    if tied := [name for name in names if _is_head(model, name)]:
        raise RecipeError(f"lora_target_modules {targets!r} reaches {tied[0]}, which is tied to the embeddings")
    check_patterns(names, options)
    init = options.get("init_lora_weights", True)
    check_layers(model, names, init)
    trained = find_modules(model, options.get("modules_to_save") or (), () if targets in roles else names)
    if targets in roles:
        pattern = _exact_pattern([name for name in names if not f"{name}.".startswith(_prefixes(trained))])
    # no task_type: CAUSAL_LM, SEQ_2_SEQ_LM and FEATURE_EXTRACTION pass arguments that BLIP does not accept
    arguments = {**options, "modules_to_save": trained or None, "revision": revision}
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=pattern, **arguments)
    adapted = get_peft_model(model, config)
    check_ranks(adapted, init)
    prepare_training(adapted)
    for name, module in adapted.named_modules():
        if "lora_dropout" in name and type(module) is nn.Dropout:
            module.__class__ = BitDropout
    return adapted


def _is_head(model: PreTrainedModel, name: str) -> bool:
    """Return whether a layer is part of the head, whose weights may be those of the embeddings."""
    return ".cls." in name or model.get_submodule(name) is model.get_output_embeddings()


def _prefixes(modules: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in modules)


def _exact_pattern(names: list[str]) -> str:
    """Return a regular expression for `names`, in all blocks: PEFT refuses one that matches other modules too."""
    return "|".join(dict.fromkeys(re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in names))


def _matching_layers(model: nn.Module, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"lora_target_modules {pattern!r} is not a regular expression: {error}") from error
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and compiled.fullmatch(name)
    ]


def trainable_summary(model: PeftModel | PreTrainedModel) -> str:
    """Return one line: the trainable parameters, their percentage, and the number of layers with an adapter."""
    if not isinstance(model, PeftModel):
        return full_summary(model)
    trainable, total = model.get_nb_trainable_parameters()
    layers = sum(1 for name, _ in model.named_modules() if name.endswith(".lora_A"))
    return f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%}), in {layers} layers"


def trainable_names(model: PeftModel | PreTrainedModel) -> list[str]:
    """Return a line for each kind of trainable layer, "NAME.*.NAME: 12 layers, N parameters", or trained part."""
    if not isinstance(model, PeftModel):
        return [f"{name}: {size:,} parameters" for name, size in trained_parts(model).items()]
    layers: dict[str, Counter[str]] = {}  # kind -> layer -> parameters
    for name, weight in model.get_base_model().named_parameters():
        if weight.requires_grad:
            layer = re.split(r"\.lora_|\.modules_to_save", name)[0]
            layers.setdefault(re.sub(r"\.\d+\.", ".*.", layer), Counter())[layer] += weight.numel()
    return [f"{kind}: {len(sizes)} layers, {sizes.total():,} parameters" for kind, sizes in layers.items()]


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model without its PEFT wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def saved_bytes(model: PeftModel | PreTrainedModel) -> int:
    """Return the size of the adapter's weights, or of all without an adapter."""
    weights = get_peft_model_state_dict(model).values() if isinstance(model, PeftModel) else model.parameters()
    return sum(weight.nbytes for weight in weights)
