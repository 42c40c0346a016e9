"""Cross-entropy of a frozen language-model head without all logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ROWS = 1024  # tokens whose logits are in memory at a time: 1024 x 30,524 in float32 are 125 MB


def head_loss(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the summed cross-entropy (float32 scalar) of `head(hidden)` and `labels` (n,) int64.

    Equal to `F.cross_entropy(head(hidden).float(), labels, reduction="sum", label_smoothing=smoothing)` for `hidden`
    (n, width), except that the head gets no gradient: it is tied to the embeddings and frozen. Loss and gradient are
    computed together, ROWS tokens at a time, as in Liger's fused linear cross-entropy (Hsu et al., 2024, "Liger
    Kernel: Efficient Triton Kernels for LLM Training", section 3.2).
    """
    return _HeadLoss.apply(hidden, head.weight, head.bias, labels, smoothing)


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
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in torch.arange(len(hidden), device=hidden.device).split(ROWS):
            log_probs = F.linear(hidden[rows], weight, bias).log_softmax(-1, dtype=torch.float32)
            chosen = log_probs.gather(-1, labels[rows, None])
            loss -= (1 - smoothing) * chosen.sum()
            if smoothing:
                loss -= smoothing * log_probs.mean(-1).sum()
            if gradient is not None:  # softmax minus the target distribution
                change = log_probs.exp_()
                change = change.sub_(smoothing / change.shape[-1]) if smoothing else change
                change.scatter_add_(-1, labels[rows, None], torch.full_like(chosen, smoothing - 1))
                gradient[rows] = (change.to(weight.dtype) @ weight).to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None, None, None
