"""Cross-entropy of a language-model head without all logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ROWS = 1024  # tokens whose logits are in memory at a time: 1024 x 30,524 in float32 are 125 MB


def head_loss(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the summed cross-entropy (float32 scalar) of `head(hidden)` and `labels` (n,) int64.

    Equal to `F.cross_entropy(head(hidden).float(), labels, reduction="sum", label_smoothing=smoothing)` for `hidden`
    (n, width). Loss and gradients, also those of a trainable head, are computed together, ROWS tokens at a time, as in
    Liger's fused linear cross-entropy (Hsu et al., 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training",
    section 3.2).
    """
    inputs: list[Any] = [hidden, head.weight, head.bias]
    if not torch.is_grad_enabled():  # a Function is asked for the gradients of trainable weights all the same
        inputs = [tensor.detach() for tensor in inputs]
    return _HeadLoss.apply(*inputs, labels, smoothing)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad, weight_grad, bias_grad = (
            torch.zeros_like(tensor) if is_needed else None
            for tensor, is_needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in torch.arange(len(hidden), device=hidden.device).split(ROWS):
            log_probs = F.linear(hidden[rows], weight, bias).log_softmax(-1, dtype=torch.float32)
            chosen = log_probs.gather(-1, labels[rows, None])
            loss -= (1 - smoothing) * chosen.sum()
            if smoothing:
                loss -= smoothing * log_probs.mean(-1).sum()
            if not any(ctx.needs_input_grad):
                continue
            change = log_probs.exp_()  # softmax minus the target distribution
            change = change.sub_(smoothing / change.shape[-1]) if smoothing else change
            change.scatter_add_(-1, labels[rows, None], torch.full_like(chosen, smoothing - 1))
            if hidden_grad is not None:
                hidden_grad[rows] = (change.to(weight.dtype) @ weight).to(hidden_grad.dtype)
            if weight_grad is not None:
                weight_grad += change.to(hidden.dtype).T @ hidden[rows]
            if bias_grad is not None:
                bias_grad += change.sum(0)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = (None if total is None else total * scale.to(total.dtype) for total in ctx.saved_tensors)
        return (*scaled, None, None)
