"""Split a micro-batch that does not fit into memory, without changing the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import distributed as dist
from torch import nn

Batch = dict[str, torch.Tensor]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` means that CUDA or the system had no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """Yield parts of at most `rows` rows of a batch of `CaptionCollator`, in order."""
    total = len(batch["labels"])
    if total <= rows:
        yield batch
        return
    entries = {name: torch.ones_like(batch["row"]) for name in batch}  # of each row
    if (is_cached := batch.get("is_cached")) is not None:
        entries |= {"features": is_cached.long(), "pixel_values": (~is_cached).long(), "digests": (~is_cached).long()}
    if (grid := batch.get("image_grid_thw")) is not None:  # Qwen-VL has all patches of a batch in one sequence
        entries["pixel_values"] = grid.prod(1)
    for start in range(0, total, rows):
        part = {}
        for name, values in batch.items():
            first, last = int(entries[name][:start].sum()), int(entries[name][: start + rows].sum())
            part[name] = values[first:last]
        yield {name: values for name, values in part.items() if len(values)}


def repeat_rows(batch: Batch, times: int) -> Batch:
    """Return a batch with each row `times` times in succession."""
    rows = [row for row in split_batch(batch, 1) for _ in range(times)]
    return {name: torch.cat([row[name] for row in rows if name in row]) for name in batch}


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
