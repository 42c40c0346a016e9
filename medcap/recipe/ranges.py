"""The values that keys of the Trainer may have, as tables; keys of medcap have theirs in `arguments`."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from medcap.recipe.adapter_rules import init_fault
from medcap.recipe.suggestions import suggest

LARGEST_SEED = 2**32 - 1  # of NumPy


class Range(NamedTuple):
    """The numbers from `lowest` to `highest`, without these ends if `above` or `below`, and `also` another number."""

    lowest: float
    highest: float = math.inf
    above: bool = False
    below: bool = False
    also: float | None = None

    def allows(self, value: float) -> bool:
        """Return whether a number is allowed; nan and infinity never are."""
        if not math.isfinite(value):
            return False
        is_above = value > self.lowest if self.above else value >= self.lowest
        return value == self.also or (is_above and (value < self.highest if self.below else value <= self.highest))

    def __str__(self) -> str:
        low, high = f"{self.lowest:g}", f"{self.highest:.16g}"
        also = "" if self.also is None else f"{self.also:g}, or "
        if self.highest == math.inf:
            return f"{also}{'above' if self.above else 'at least'} {low}"
        if self.above or self.below:
            start = f"{'above' if self.above else 'at least'} {low}"
            return f"{also}{start}, {'below' if self.below else 'at most'} {high}"
        return f"{also}{low} to {high}"


POSITIVE, NOT_NEGATIVE, SEED = Range(0, above=True), Range(0), Range(0, LARGEST_SEED)
BATCH, RANK = Range(1, 65536), Range(1, 1024)
PATTERNS = {"lora_rank_pattern": RANK, "lora_alpha_pattern": POSITIVE}  # numbers by regular expressions
TRAINER_RANGES = {
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": BATCH,
    "gradient_accumulation_steps": BATCH,
    "eval_accumulation_steps": BATCH,
    "num_train_epochs": Range(0, 1_000_000, above=True),
    "max_steps": Range(1, 10**12, also=-1),
    "learning_rate": POSITIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": Range(0, 1),
    "adam_beta1": Range(0, 1, below=True),
    "adam_beta2": Range(0, 1, below=True),
    "adam_epsilon": Range(0, 1, above=True),  # with 0, a gradient of 0 gives nan: the first ones of lora_A are
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": Range(0, 1, below=True),
    "neftune_noise_alpha": POSITIVE,
    "torch_empty_cache_steps": Range(1),
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "save_steps": POSITIVE,
    "save_total_limit": Range(1),
    "early_stopping_patience": Range(1),
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": Range(-1, 1024),
    "dataloader_prefetch_factor": Range(1, 1024),
    "ddp_bucket_cap_mb": Range(1, 65536),
    "ddp_timeout": Range(1, 10**8),
}

SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
DIRECTIONS = {**dict.fromkeys((*SCORES, "distinct_fraction"), True), "loss": False}  # whether more is better
REWARDS = ("cider", "rouge_l", "bleu_4", "facts_f1")
UNDIRECTED = ("mean_words", "length_ratio")  # the recipe must give greater_is_better
BEST_METRICS = (*DIRECTIONS, *UNDIRECTED)
NAMES: dict[str, tuple[str, ...]] = {
    "metric_for_best_model": (*BEST_METRICS, *(f"eval_{name}" for name in BEST_METRICS)),
    "train_sampling_strategy": ("group_by_length", "random", "sequential"),
    "log_level": ("passive", "debug", "info", "warning", "error", "critical", "detail"),
    "log_level_replica": ("passive", "debug", "info", "warning", "error", "critical", "detail"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"),
    "debug": ("", "underflow_overflow"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "length_column_name": ("length",),
    "rerank": ("none", "consensus"),
}
LENGTHS = {"prompt": 1000, "lora_target_modules": 1000}  # maximum of characters
FILLED = frozenset({"lora_modules_to_save"})  # lists that must not be empty
# keys with one possible value, and the reason
FIXED: dict[str, tuple[bool, str]] = {
    "remove_unused_columns": (False, "the collator needs the image column"),
    "prediction_loss_only": (False, "every evaluation generates captions and scores them"),
    "predict_with_generate": (True, "every evaluation generates captions and scores them"),
    "eval_do_concat_batches": (True, "the captions of all images are scored together"),
    "batch_eval_metrics": (False, "the captions of all images are scored together"),
    "use_liger_kernel": (False, "its kernels are not made for BLIP"),
    "use_cache": (False, "training needs no cache of keys and values; generation has one"),
    "auto_find_batch_size": (False, "a batch that does not fit into memory is split automatically"),
    "enable_jit_checkpoint": (False, "SIGTERM writes a checkpoint in any case"),
    "eval_use_gather_object": (False, "predictions are gathered as tensors"),
    "logging_nan_inf_filter": (False, "a non-finite loss stops the run"),
    "restore_callback_states_from_checkpoint": (True, "a resumed run counts the evaluations without improvement"),
}

# keys that no run uses, and the reason
UNUSED = {
    "include_for_metrics": "metrics are computed from captions alone",
    "label_names": "the labels are the tokens of the captions",
    "include_num_input_tokens_seen": "it counts the pixels of BLIP; tokens_per_second is logged",
    "liger_kernel_config": "its kernels are not made for BLIP",
}


def reporters() -> tuple[str, ...]:
    """Return the values of report_to; a function, because the import takes time."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return ("none", "all", *INTEGRATION_TO_CALLBACK)


def compile_backends() -> tuple[str, ...]:
    """Return the values of torch_compile_backend."""
    from accelerate.utils import DynamoBackend

    return tuple(backend.value.lower() for backend in DynamoBackend)


IMPORTED_NAMES = {"report_to": reporters, "torch_compile_backend": compile_backends}


def find_fault(key: str, value: Any, allowed: Range | None = None) -> str:
    """Return what is wrong with a value of the right type, and what is allowed; "" if nothing is."""
    if allowed is not None and not allowed.allows(value):
        return f"{key} is {value}; allowed is {allowed}"
    if key in UNUSED:
        return f"{key} has no effect: {UNUSED[key]}; remove it"
    if key in FIXED and value != FIXED[key][0]:
        needed, reason = FIXED[key]
        return f"{key} must be {str(needed).lower()}: {reason}"
    if key in FILLED and not value:
        return f"{key} is empty; list names, or remove it"
    if key in LENGTHS and len(value) > LENGTHS[key]:
        return f"{key} is {len(value):,} characters long; allowed are {LENGTHS[key]:,}"
    if key == "lora_init":
        return init_fault(value)
    if key == "scst_reward":
        return _reward_fault(value)
    return _pattern_fault(key, value) if key in PATTERNS else _name_fault(key, value)


def _pattern_fault(key: str, numbers: dict[Any, Any]) -> str:
    """Return the first fault of a mapping of regular expressions to numbers; ranks are whole."""
    allowed = PATTERNS[key]
    for pattern, number in numbers.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError, RecursionError) as error:
            return f"{key} has {pattern!r}, which is not a regular expression: {error}"
        is_number = isinstance(number, int if allowed is RANK else (int, float)) and not isinstance(number, bool)
        if not is_number or not allowed.allows(number):
            kind = "an integer, " if allowed is RANK else ""
            return f"{key} is {number!r} for {pattern!r}; allowed is {kind}{allowed}"
    return ""


def _reward_fault(weights: dict[Any, Any]) -> str:
    """Return the first fault of a mapping of rewards to weights."""
    for name, weight in weights.items():
        if name not in REWARDS:
            return f"scst_reward has {name!r}; {suggest(str(name), REWARDS)}allowed are {', '.join(REWARDS)}"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not POSITIVE.allows(weight):
            return f"scst_reward is {weight!r} for {name}; allowed is {POSITIVE}"
    return "" if weights else "scst_reward is empty; name rewards, or remove it"


def _name_fault(key: str, value: Any) -> str:
    """Return the first name in `value`, a text or a list, that is unknown, with the most similar one."""
    if key not in NAMES.keys() | IMPORTED_NAMES.keys():
        return ""
    names = NAMES[key] if key in NAMES else IMPORTED_NAMES[key]()
    for name in value if isinstance(value, list) else [value]:
        if name not in names and not isinstance(name, bool):
            return f"{key} is {name!r}; {suggest(str(name), names)}allowed are {', '.join(filter(None, names))}"
    return ""
