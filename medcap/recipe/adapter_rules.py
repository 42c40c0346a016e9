"""Settings of the adapter that contradict each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcap.recipe.arguments import Recipe

INITS = ("gaussian", "orthogonal", "olora", "pissa", "mica")
# values of PEFT that are refused, and the reason
REFUSED_INITS = {
    "False": "the adapter would change captions before it is trained",
    "eva": "it needs the base's activations",
    "corda": "it needs the base's activations",
    "loftq": "it quantizes the base in its own way",
    "lora_ga": "it needs gradients of the base",
}


def init_fault(value: Any) -> str:
    """Return what is wrong with a value of lora_init; "" if nothing is."""
    if value is True or value in INITS or re.fullmatch(r"pissa_niter_\d{1,3}", str(value)):
        return ""
    reason = REFUSED_INITS.get(str(value))
    name = str(value).lower() if isinstance(value, bool) else repr(value)
    return (
        f"lora_init is {name}{f', which is not supported: {reason}' if reason else ''}; allowed are true, "
        f"{', '.join(INITS)}, and pissa_niter_N, a faster pissa of N iterations"
    )


def changes_base(init: bool | str) -> bool:
    """Return whether PEFT subtracts the initial adapter from the weights of the base."""
    return str(init).startswith(("pissa", "olora"))


def adapter_conflict(recipe: Recipe) -> str:
    """Return why `adapter` cannot be used with other keys of the recipe; those of LoRA have rules of their own."""
    if recipe.lora.adapter == "lora" and recipe.lora.train_vision:
        return (
            "train_vision trains all weights of the vision encoder, which needs adapter: none; for an adapter there "
            "set lora_target_modules: text-and-vision-attention"
        )
    if recipe.lora.adapter == "none" and recipe.model.quantization != "none":
        return (
            f"quantization {recipe.model.quantization} freezes weights, and adapter none trains them: set "
            "quantization: none, or adapter: lora"
        )
    return ""


def init_conflict(recipe: Recipe) -> str:
    """Return why lora_init cannot be used with other keys of the recipe."""
    lora, model = recipe.lora, recipe.model
    if changes_base(lora.lora_init) and model.quantization != "none":
        return f"lora_init {lora.lora_init} changes weights, and quantization rounds them: set quantization: none"
    if changes_base(lora.lora_init) and model.precision in ("bf16", "fp16"):
        return precision_conflict(lora.lora_init, model.precision)
    if lora.lora_init == "orthogonal":
        for rank in (lora.lora_r, *(lora.lora_rank_pattern or {}).values()):
            if rank % 2:
                return f"lora_init orthogonal needs even ranks; lora_r or lora_rank_pattern has {rank}"
    if lora.lora_init == "mica" and lora.lora_variant == "dora":
        return "lora_init mica cannot be used with lora_variant dora: set lora or rslora"
    if lora.lora_init == "mica" and lora.lora_lr_ratio != 1:
        return "lora_lr_ratio has no effect with lora_init mica, which does not train B matrices; remove it"
    return ""


def precision_conflict(init: bool | str, precision: str) -> str:
    """Return why an initialization that changes the base needs float32."""
    return (
        f"lora_init {init} changes weights of the base, and in {precision} the saved adapter would differ from the "
        "trained one: set precision: fp32"
    )
