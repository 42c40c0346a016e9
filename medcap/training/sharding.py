"""Models that FSDP2 or DeepSpeed shards over processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

# engines that shard the model: their processes compute together, so none can call it more often than the others
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
Result = TypeVar("Result")


def sharding_engine() -> str:
    """Return the engine of `accelerate launch`: FSDP, DEEPSPEED or "" for none."""
    return next((name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"), "")


def call_within(model: nn.Module, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function that uses modules of `model` directly.

    FSDP2 gathers the parameters that belong to no layer, such as those of a vision encoder, when `model` itself is
    called, so the function becomes one of its forward methods.
    """
    if not isinstance(model, FSDPModule):
        return function(*args)
    if not hasattr(model, "call"):
        model.call = lambda inner, *inner_args: inner(*inner_args)  # type: ignore[assignment]
        register_fsdp_forward_method(model, "call")
    return model.call(function, *args)  # type: ignore[operator]
