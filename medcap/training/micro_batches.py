"""A micro-batch that does not fit into memory, taken in parts: the same examples and the same step, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import should_reduce_batch_size
from torch import distributed as dist
from torch import nn

Batch = dict[str, torch.Tensor]
# processes that hold parts of one model compute together: one of them cannot take more parts than the others
TOGETHER = (DistributedType.FSDP, DistributedType.DEEPSPEED)
OF_KNOWN, OF_UNKNOWN = ("features",), ("pixel_values", "digests")  # see CaptionCollator


def is_out_of_memory(error: Exception) -> bool:
    """Whether CUDA, or the system for a tensor or for Python, had no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """Parts of at most `rows` rows of a batch of `CaptionCollator`, in order."""
    whole = len(batch["labels"])
    if whole <= rows:
        yield batch
        return
    for start in range(0, whole, rows):
        yield _part(batch, start, start + rows)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start` to `stop`; images and features lie apart from one another where features were kept."""
    known = batch.get("is_known")
    if known is None:
        return {name: values[start:stop] for name, values in batch.items()}
    part = {}
    for name, values in batch.items():
        counted = known if name in OF_KNOWN else ~known if name in OF_UNKNOWN else torch.ones_like(known)
        piece = values[int(counted[:start].sum()) : int(counted[:stop].sum())]
        if len(piece):
            part[name] = piece
    return part


class Gradients:
    """The gradients of the weights that learn, as they were: what half a backward pass added can be undone."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.before = [None if weight.grad is None else weight.grad.clone() for weight in self.weights]

    def restore(self) -> None:
        """Take back what was added since."""
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
