"""LoRA adapters on BLIP: target modules, attaching and describing."""

from __future__ import annotations

import re

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import BlipForConditionalGeneration

from medcap.modeling.blip_fast import BitDropout
from medcap.recipe import RecipeError

_LAYER = r"text_decoder\.bert\.encoder\.layer\.\d+\."
_ATTENTION = r"(attention|crossattention)\.(self\.(query|key|value)|output\.dense)"
_VISION_ATTENTION = r"vision_model\.encoder\.layers\.\d+\.self_attn\.(qkv|projection)"
# Regular expressions match complete names. PEFT matches the ends of names in a list: ["attention.self.query"] would
# adapt the self-attention only, and "all-linear" also the head, which is tied to the embeddings.
TARGETS = {
    "query-key": _LAYER + r"(attention|crossattention)\.self\.(query|key)",
    "query-value": _LAYER + r"(attention|crossattention)\.self\.(query|value)",
    "attention": _LAYER + _ATTENTION,
    "text": _LAYER + rf"({_ATTENTION}|intermediate\.dense|output\.dense)",
    "text-and-vision-attention": rf"{_LAYER}{_ATTENTION}|{_VISION_ATTENTION}",
}


def add_lora(
    model: BlipForConditionalGeneration,
    *,
    targets: str,
    r: int,
    alpha: float,
    dropout: float,
    revision: str | None = None,
) -> PeftModel:
    """Freeze `model` and put LoRA adapters on the linear layers that `targets` names.

    Args:
        model: The base; it is changed in place.
        targets: A key of TARGETS or a regular expression for complete module names.
        r: Rank.
        alpha: Updates are multiplied by alpha / r.
        dropout: Dropout before the adapter.
        revision: Of the base, saved with the adapter.

    Raises:
        RecipeError: `targets` matches no linear layer, or the head, which is tied to the embeddings: merging would
            change them.
    """
    pattern = TARGETS.get(targets, targets)
    names = _matching_layers(model, pattern)
    if not names:
        raise RecipeError(f"lora_target_modules {targets!r} matches no linear layer; use one of {', '.join(TARGETS)}")
    if tied := [name for name in names if ".cls." in name]:
        raise RecipeError(f"lora_target_modules {targets!r} reaches {tied[0]}, which is tied to the embeddings")
    # no task_type: CAUSAL_LM, SEQ_2_SEQ_LM and FEATURE_EXTRACTION pass arguments that BLIP does not accept
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=pattern, revision=revision
    )
    adapted = get_peft_model(model, config)
    for name, module in adapted.named_modules():
        if "lora_dropout" in name and type(module) is nn.Dropout:
            module.__class__ = BitDropout
    return adapted


def _matching_layers(model: nn.Module, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"lora_target_modules {pattern!r} is not a regular expression: {error}") from error
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and compiled.fullmatch(name)
    ]


def trainable_summary(model: PeftModel) -> str:
    """Return one line: the trainable parameters, their percentage, and the number of layers."""
    trainable, total = model.get_nb_trainable_parameters()
    layers = sum(1 for name, _ in model.named_modules() if name.endswith(".lora_A"))
    return f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%}), in {layers} layers"


def trainable_names(model: PeftModel) -> list[str]:
    """Return a line for each kind of trainable layer: "NAME.*.NAME: 12 layers, N parameters"."""
    weights: dict[str, list[int]] = {}
    for name, weight in model.get_base_model().named_parameters():
        if weight.requires_grad:
            layer = re.sub(r"\.\d+\.", ".*.", name.partition(".lora_")[0])
            weights.setdefault(layer, []).append(weight.numel())
    return [f"{layer}: {len(sizes) // 2} layers, {sum(sizes):,} parameters" for layer, sizes in weights.items()]


def base_model(model: nn.Module) -> BlipForConditionalGeneration:
    """Return the model without its PEFT wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_bytes(model: PeftModel) -> int:
    """Return the size of the adapter's weights."""
    return sum(weight.nbytes for weight in get_peft_model_state_dict(model).values())
