"""The keys of a recipe that are arguments of `peft.LoraConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft.utils.other import get_pattern_key

from medcap.recipe import RecipeError
from medcap.recipe.arguments import LoraArguments


def lora_options(lora: LoraArguments) -> dict[str, Any]:
    """Return the arguments of LoraConfig for the keys that `add_lora` does not name.

    "rslora" is Kalajdzievski, 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"; "dora" is Liu et
    al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """
    return {
        "use_rslora": lora.lora_variant == "rslora",
        "use_dora": lora.lora_variant == "dora",
        "init_lora_weights": lora.lora_init,
        "rank_pattern": lora.lora_rank_pattern or {},
        "alpha_pattern": lora.lora_alpha_pattern or {},
        "modules_to_save": lora.lora_modules_to_save,
    }


def check_patterns(layers: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise RecipeError for a pattern that PEFT uses for none of `layers`; the first matching pattern applies."""
    for argument in ("rank_pattern", "alpha_pattern"):
        patterns = list(options.get(argument, ()))
        used = {get_pattern_key(patterns, name) for name in layers}
        if unused := [pattern for pattern in patterns if pattern not in used]:
            raise RecipeError(
                f"lora_{argument} {unused[0]!r} matches the end of no layer with an adapter, or an earlier pattern "
                f"matches it first; such a layer is {layers[0]}"
            )
