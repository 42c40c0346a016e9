"""Memory of training: estimated before the first step, compared with the measured peak after the last."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from medcap.data.captions import IGNORED
from medcap.modeling.loss import ROWS
from medcap.training.micro_batches import is_out_of_memory

if TYPE_CHECKING:
    from medcap.training.trainer import CaptionTrainer

# bytes of optimizer state per trainable parameter, by a part of its name; others are Adam's two moments in float32
OPTIMIZER_BYTES = {"8bit": 2, "adafactor": 1, "sgd": 0}
ADAM_BYTES = 8
LOGIT_TENSORS = 3  # float32 tensors of logits that exist at the same time in `head_loss`


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training step in bytes, of one process or its CUDA device."""

    held: int  # in use before the first step: weights, and on a CPU also Python and its libraries
    weights: int  # of these, the model's
    adapter: int  # gradients and optimizer state of the trainable parameters
    activations: int  # of a micro-batch, forward and backward, or of the frozen vision encoder if larger
    logits: int
    images: int  # of a micro-batch

    @property
    def total(self) -> int:
        return self.held + self.adapter + self.activations + self.logits

    def __str__(self) -> str:
        parts = (
            (self.weights, "weights"),
            (self.held - self.weights, "libraries and other objects"),
            (self.adapter, "gradients and optimizer"),
            (self.activations, f"activations of {self.images} images"),
            (self.logits, "logits"),
        )
        return f"about {gigabytes(self.total)} GB: " + ", ".join(f"{gigabytes(size)} {name}" for size, name in parts)


def gigabytes(size: int) -> str:
    """Format bytes as GB (10^9) with two decimals."""
    return f"{size / 1e9:.2f}"


def estimate_memory(trainer: CaptionTrainer) -> MemoryEstimate:
    """Estimate the memory of a training step, with the longest training caption in every row.

    Activations are measured with one image and with two, and the difference is added for each further image. This
    includes the effects of gradient checkpointing, quantization and mixed precision. Gradients and random number
    generators do not change.
    """
    model, images = trainer.model, trainer.args.train_batch_size * trainer.rows_per_image
    lengths = trainer.train_dataset[trainer.args.length_column_name]
    longest = trainer.train_dataset[max(range(len(lengths)), key=lengths.__getitem__)]
    tokens = min(max(lengths), trainer.data_collator.max_caption_tokens)
    with _training_mode(trainer):
        one, two = (_step_peak(trainer, [longest] * rows) for rows in (1, 2))
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    count = sum(weight.numel() for weight in trainable)
    vocab = trainer.family.base.config.get_text_config(decoder=True).vocab_size
    rows = min(images * (tokens - 1), ROWS) if trainer.has_partial_logits else 0  # else among the activations
    return MemoryEstimate(
        held=memory_in_use(trainer.args.device),
        weights=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        adapter=sum(weight.numel() * weight.element_size() for weight in trainable)
        + count * optimizer_bytes(str(getattr(trainer.args.optim, "value", trainer.args.optim))),
        activations=one + (images - 1) * max(two - one, 0),
        logits=rows * vocab * 4 * LOGIT_TENSORS,
        images=images,
    )


def optimizer_bytes(name: str) -> int:
    """Return the bytes of optimizer state per trainable parameter."""
    return next((size for part, size in OPTIMIZER_BYTES.items() if part in name), ADAM_BYTES)


@contextmanager
def _training_mode(trainer: CaptionTrainer) -> Iterator[None]:
    """Turn on dropout; restore mode and random number generators afterwards."""
    was_training = trainer.model.training
    device = trainer.args.device
    rng = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with rng, trainer.compute_loss_context_manager(), disable_input_dtype_casting(trainer.model):
        trainer.model.train()
        yield
    trainer.model.train(was_training)


def _step_peak(trainer: CaptionTrainer, rows: list[dict[str, Any]]) -> int:
    """Return the peak of bytes that a step on `rows` allocates, the frozen vision encoder included."""
    batch = trainer.data_collator(rows)
    batch.pop("digests", None)  # nothing is added to the cache
    if trainer.has_partial_logits:  # logits are estimated by themselves
        batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        batch["labels"][:, 1] = 1
    batch = {name: values.to(trainer.args.device) for name, values in batch.items()}
    trainable = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with LiveTensors() as live:
        loss = trainer.compute_loss(trainer.model, batch)
        torch.autograd.grad(loss, trainable, allow_unused=True)
    return live.peak


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of live tensors that were created while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and count its new storages; views cost nothing."""
        for tensor in _tensors((args, kwargs)):
            self.known.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _release(self, size: int) -> None:
        self.now -= size


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def memory_in_use(device: torch.device) -> int:
    """Return the bytes of tensors on a CUDA `device`, or the resident size of this process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the maximum of `memory_in_use` since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Reset `peak_memory`; if the system cannot, the peak includes loading the model."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    """Return a size of this process in bytes as Linux reports it; elsewhere the maximum resident size."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


class MemoryReport(TrainerCallback):
    """Prints the estimate before training and the measured peak of the first epoch's steps after it.

    Generation between epochs is not included.
    """

    def __init__(self, trainer: CaptionTrainer) -> None:
        self.trainer = trainer
        self.estimate: MemoryEstimate | None = None
        self.peak = 0
        self.is_measuring = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        try:
            if not self.trainer.family.is_sharded:
                self.estimate = estimate_memory(self.trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):  # two images may not fit; training may still fit one
                raise
        reset_peak(args.device)
        self._print(state, f"memory: {self.estimate or 'not estimated'}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.is_measuring:
            self.peak = peak_memory(args.device)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.is_measuring = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.peak:
            self.is_measuring = False
        else:  # before the first step: eval_on_start
            reset_peak(args.device)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._print(state, self.outcome())

    def outcome(self) -> str:
        """Return one line with estimate and measured peak."""
        if not self.peak:  # a resumed run that had ended
            return f"memory: not measured, {self.estimate or 'nor estimated'}"
        if self.estimate is None:
            return f"memory: {gigabytes(self.peak)} GB measured, not estimated"
        ratio = self.estimate.total / self.peak - 1
        return f"memory: {gigabytes(self.peak)} GB measured, {gigabytes(self.estimate.total)} estimated ({ratio:+.0%})"

    def _print(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            tqdm.write(line, sys.stderr)
