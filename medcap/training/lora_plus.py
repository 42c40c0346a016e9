"""LoRA+: a higher learning rate for the B matrices of the adapter."""

from __future__ import annotations

import torch
from torch import nn


def raise_lora_b(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """Multiply the learning rate of every LoRA B matrix by `ratio`, before the first step.

    The matrices get parameter groups of their own, with the other settings of their group. Equal to
    `peft.optimizers.create_loraplus_optimizer` (Hayou et al., 2024, "LoRA+: Efficient Low Rank Adaptation of Large
    Models"), but for any optimizer of the Trainer, and only for B: PEFT also raises biases and DoRA's magnitudes.

    Raises:
        ValueError: The optimizer has no such parameters; it updates them in another way.
    """
    chosen = {id(weight) for name, weight in model.named_parameters() if "lora_B" in name and weight.requires_grad}
    count = 0
    for group in list(optimizer.param_groups):
        raised = [weight for weight in group["params"] if id(weight) in chosen]
        group["params"] = [weight for weight in group["params"] if id(weight) not in chosen]
        if raised:
            optimizer.add_param_group({**group, "params": raised, "lr": ratio * group["lr"]})
        count += len(raised)
    if count < len(chosen):
        raise ValueError(
            f"lora_lr_ratio is {ratio:g}, but {type(optimizer).__name__} has no learning rates for groups of "
            "parameters: choose another optim, such as adamw_torch"
        )
