"""The memory that training takes: estimated before the first step, and compared with what was seen after the last."""

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
from torch.utils._pytree import tree_leaves
from tqdm import tqdm
from transformers import (
    BlipForConditionalGeneration,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from medcap.data.captions import IGNORED
from medcap.modeling.feature_cache import feature_shape
from medcap.modeling.loss import ROWS
from medcap.training.micro_batches import TOGETHER, is_out_of_memory

if TYPE_CHECKING:
    from medcap.training.trainer import CaptionTrainer

# bytes that the optimizer keeps for each weight that learns: two moments of Adam in float32, or in 8 bits
OPTIMIZER_BYTES = {"8bit": 2, "adafactor": 1, "sgd": 0}
ADAM_BYTES = 8
TABLES = 3  # of logits in float32 that exist at a time in `head_loss`


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, or of its CUDA device, at the highest point of a training step.

    - `held`: what is in use before the first step: weights, and on a CPU Python and its libraries
    - `weights`: of these, the model's
    - `adapter`: gradients and optimizer state of the weights that learn
    - `activations`: of a micro-batch of `images`, forward and backward, or of the frozen tower where that is more
    - `logits`: of the words of every token, as many as exist at a time
    """

    held: int
    weights: int
    adapter: int
    activations: int
    logits: int
    images: int

    @property
    def total(self) -> int:
        return self.held + self.adapter + self.activations + self.logits

    def __str__(self) -> str:
        parts = (
            (self.weights, "weights"),
            (self.held - self.weights, "libraries and what else is held"),
            (self.adapter, "gradients and optimizer"),
            (self.activations, f"activations of {self.images} images"),
            (self.logits, "logits"),
        )
        return f"about {gigabytes(self.total)} GB: " + ", ".join(f"{gigabytes(size)} {name}" for size, name in parts)


def gigabytes(size: int) -> str:
    """Bytes as GB (10^9) with two digits behind the point."""
    return f"{size / 1e9:.2f}"


def estimate_memory(trainer: CaptionTrainer) -> MemoryEstimate:
    """What a step of `trainer` will take, with the longest caption of its training data in every row.

    Weights and what is held are counted as they are. Activations are measured: one image and then two go forward and
    backward, and the difference is what each further image of a micro-batch adds. That also sees what gradient
    checkpointing, quantization and mixed precision do. Nothing of it stays: no gradient, no random number.
    """
    model, images = trainer.model, trainer.args.train_batch_size
    blip = model.get_base_model()
    tokens = _longest_caption(trainer)
    with _as_training_finds_it(trainer):
        one, two = (_step_peak(trainer, rows, tokens) for rows in (1, 2))
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    count = sum(weight.numel() for weight in learned)
    words = blip.config.text_config.vocab_size
    return MemoryEstimate(
        held=memory_in_use(trainer.args.device),
        weights=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        adapter=sum(weight.numel() * weight.element_size() for weight in learned)
        + count * _optimizer_bytes(str(getattr(trainer.args.optim, "value", trainer.args.optim))),
        activations=max(one + (images - 1) * max(two - one, 0), images * _tower_bytes(blip)),
        logits=min(images * (tokens - 1), ROWS) * words * 4 * TABLES,
        images=images,
    )


def _optimizer_bytes(name: str) -> int:
    return next((size for part, size in OPTIMIZER_BYTES.items() if part in name), ADAM_BYTES)


def _tower_bytes(blip: BlipForConditionalGeneration) -> int:
    """What the frozen tower has at a time of one image: a layer's widest part, query, key, value, and the residual."""
    patches, width = feature_shape(blip)
    return patches * (blip.config.vision_config.intermediate_size + 4 * width) * blip.dtype.itemsize


def _longest_caption(trainer: CaptionTrainer) -> int:
    collator, rows = trainer.data_collator, trainer.train_dataset
    return min(max(rows[trainer.args.length_column_name]), collator.max_caption_tokens)


@contextmanager
def _as_training_finds_it(trainer: CaptionTrainer) -> Iterator[None]:
    """Dropout on, and afterwards the same random numbers to come as before."""
    was_training = trainer.model.training
    device = trainer.args.device
    rng = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with rng, trainer.compute_loss_context_manager(), disable_input_dtype_casting(trainer.model):
        trainer.model.train()
        yield
    trainer.model.train(was_training)


def _step_peak(trainer: CaptionTrainer, rows: int, tokens: int) -> int:
    """Bytes that one step on `rows` grey images adds at its highest point, logits but for one token left out.

    Of a frozen tower the features are made up, as they would come from the cache.
    """
    blip, device = trainer.model.get_base_model(), trainer.args.device
    side = blip.config.vision_config.image_size
    text = torch.ones(rows, tokens, dtype=torch.int64, device=device)
    labels = torch.full_like(text, IGNORED)
    labels[:, 1] = 1
    if trainer.tower_learns:
        pictures = torch.full((rows, 3, side, side), 127, dtype=torch.uint8, device=device)
    else:
        pictures = torch.ones(rows, *feature_shape(blip), dtype=blip.dtype, device=device)
    batch = {"pixel_values": pictures, "input_ids": text, "attention_mask": torch.ones_like(text), "labels": labels}
    learned = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with _LiveTensors() as live:
        loss = trainer.compute_loss(trainer.model, batch)
        torch.autograd.grad(loss, learned, allow_unused=True)
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, and count what came of it: a view of what is there costs nothing."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.known.add(tensor.untyped_storage())
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


def memory_in_use(device: torch.device) -> int:
    """Bytes that tensors take on a CUDA `device`, or that this process has in RAM."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The most that `memory_in_use` ever was, since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin anew; where the system does not offer that, loading the model stays in it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    """A size of this process as Linux counts it, in bytes; elsewhere the greatest that it ever had in RAM."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


class MemoryReport(TrainerCallback):
    """Says on stderr what training will take, and at its end what it took, steps of the first epoch alone.

    Captions are generated between epochs; what that takes is not in it.
    """

    def __init__(self, trainer: CaptionTrainer) -> None:
        self.trainer = trainer
        self.estimate: MemoryEstimate | None = None
        self.seen = 0
        self.watching = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.accelerator.distributed_type not in TOGETHER:  # of those each process holds a part
            self.estimate = self._estimated()
        forget_peak(args.device)
        self._say(state, f"memory: {self.estimate or 'not estimated'}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.watching:
            self.seen = peak_memory(args.device)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watching = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watching = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._say(state, self.outcome())

    def outcome(self) -> str:
        """One line: estimated and seen."""
        if self.estimate is None:
            return f"memory: {gigabytes(self.seen)} GB seen, not estimated"
        share = self.estimate.total / max(self.seen, 1) - 1
        return f"memory: {gigabytes(self.seen)} GB seen, {gigabytes(self.estimate.total)} estimated ({share:+.0%})"

    def _estimated(self) -> MemoryEstimate | None:
        """None where two images do not fit: training then shows whether one does."""
        try:
            return estimate_memory(self.trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _say(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            tqdm.write(line, sys.stderr)
