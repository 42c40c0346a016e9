"""Splitting a micro-batch that does not fit into memory, without changing the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import should_reduce_batch_size
from torch import distributed as dist
from torch import nn

Batch = dict[str, torch.Tensor]
# processes that share one model compute in step: none of them can take more parts than the others
TOGETHER = (DistributedType.FSDP, DistributedType.DEEPSPEED)
OF_CACHED, OF_UNCACHED = ("features",), ("pixel_values", "digests")  # see CaptionCollator


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` means that CUDA or the system had no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """Yield parts of at most `rows` rows of a batch of `CaptionCollator`, in order."""
    total = len(batch["labels"])
    if total <= rows:
        yield batch
        return
    for start in range(0, total, rows):
        yield _part(batch, start, start + rows)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    """Return rows `start` to `stop`; tensors of cached and of uncached images have rows of their own."""
    is_cached = batch.get("is_cached")
    if is_cached is None:
        return {name: values[start:stop] for name, values in batch.items()}
    part = {}
    for name, values in batch.items():
        counted = torch.ones_like(is_cached)
        if name in OF_CACHED:
            counted = is_cached
        elif name in OF_UNCACHED:
            counted = ~is_cached
        piece = values[int(counted[:start].sum()) : int(counted[:stop].sum())]
        if len(piece):
            part[name] = piece
    return part


class Gradients:
    """A copy of the gradients of trainable parameters, to undo an incomplete backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.before = [None if weight.grad is None else weight.grad.clone() for weight in self.weights]

    def restore(self) -> None:
        """Reset the gradients to the copy."""
        for weight, gradient in zip(self.weights, self.before, strict=True):
            weight.grad = None if gradient is None else gradient.clone()


def average_gradients(model: nn.Module) -> None:
    """Give all processes the mean of their gradients, as DistributedDataParallel does in a backward pass."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
