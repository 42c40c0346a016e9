"""Settings of a recipe that contradict each other, as a table of rules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

from medcap.logs import error_line
from medcap.recipe.adapter_rules import adapter_conflict, init_conflict
from medcap.recipe.arguments import GROUPS, GenerationArguments, LoraArguments, Recipe, ScstArguments
from medcap.recipe.data_rules import sources_fault
from medcap.recipe.generation_rules import generation_fault
from medcap.recipe.learning_rate import WATCHES_METRIC, scheduler_fault
from medcap.recipe.ranges import DIRECTIONS, UNDIRECTED

Need = tuple[Callable[[Recipe], bool], str]
MIN_CAPTION_TOKENS = 3  # of a training caption behind the prompt: [DEC], one token, [SEP]


def faults(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield for each broken rule its keys and what is wrong; lazily, because a later rule may rely on earlier ones."""
    for keys, find_fault in RULES:
        if fault := find_fault(recipe):
            yield keys, fault


def _held_out(recipe: Recipe) -> str:
    held_out = recipe.data.valid_fraction + recipe.data.test_fraction
    if held_out < 1:
        return ""
    return (
        f"valid_fraction and test_fraction are {held_out:g} together; "
        "their sum must be below 1 to leave images for training"
    )


def _prompt(recipe: Recipe) -> str:
    words, most = len(recipe.data.prompt.split()), recipe.data.max_caption_tokens - MIN_CAPTION_TOKENS
    if words <= most:  # a word has at least one token
        return ""
    return f"prompt has {words:,} words, but max_caption_tokens leaves room for {most:,} tokens before a caption"


def _precision(recipe: Recipe) -> str:
    if recipe.model.precision != "fp16" or recipe.training.device.type != "cpu":
        return ""
    return "precision is fp16, which needs a GPU; on a CPU auto, fp32 and bf16 are allowed"


def _direction(recipe: Recipe) -> str:
    metric, rises = str(recipe.training.metric_for_best_model).removeprefix("eval_"), recipe.training.greater_is_better
    if metric in UNDIRECTED and "greater_is_better" not in recipe.given:
        return f"metric_for_best_model {metric} has no better direction: give greater_is_better: true or false"
    if (better := DIRECTIONS.get(metric, rises)) == rises:
        return ""
    return (
        f"greater_is_better is {str(rises).lower()}, but {'more' if better else 'less'} {metric} is better: remove it"
    )


def _plateau_mode(recipe: Recipe) -> str:
    """Compare the mode with `greater_is_better`, by which CaptionTrainingArguments sets it if it is not given."""
    args = recipe.training
    if args.lr_scheduler_type not in WATCHES_METRIC:
        return ""
    mode, needed = (args.lr_scheduler_kwargs or {}).get("mode"), "max" if args.greater_is_better else "min"
    if mode == needed:
        return ""
    direction = "more" if args.greater_is_better else "less"
    return (
        f"lr_scheduler_kwargs has mode {mode!r}, but {direction} {args.metric_for_best_model} is better: "
        f"mode must be {needed!r}, or left out"
    )


def _early_stopping(recipe: Recipe) -> str:
    args = recipe.training
    if args.early_stopping_patience is None or args.eval_strategy != "no":
        return ""
    return "early_stopping_patience counts evaluations, but eval_strategy is 'no'; set it to epoch or steps"


def _best_is_saved(recipe: Recipe) -> str:
    args = recipe.training
    if not args.load_best_model_at_end or args.eval_strategy != "steps" or args.eval_steps == args.save_steps:
        return ""
    return (
        f"load_best_model_at_end needs a checkpoint of every evaluation, but save_steps is {args.save_steps:g} and "
        f"eval_steps {args.eval_steps:g}: give the same number"
    )


def _checkpointing(recipe: Recipe) -> str:
    args = recipe.training
    for key in ("activation_checkpointing", "gradient_checkpointing"):
        if (getattr(args, f"{key}_kwargs", None) or {}).get("use_reentrant"):
            return (
                f"{key}_kwargs sets use_reentrant: the frozen base then gives the adapter no gradients; "
                "set it to false, or remove it"
            )
    return ""


def _tf32(recipe: Recipe) -> str:
    if recipe.training.tf32 is not False or recipe.model.precision != "auto":
        return ""
    return "tf32 is false, but precision auto allows TF32: set precision: fp32 instead"


def _without_effect(key: str, recipe: Recipe) -> str:
    """Return that another key switches `key` off, unless it has its default value."""
    is_used, needed = NEEDED[key]
    if key not in recipe.given or recipe.setting(key) == DEFAULTS[key] or is_used(recipe):
        return ""
    return f"{key} has no effect without {needed}; set it, or remove {key}"


def _views(recipe: Recipe) -> str:
    """Refuse to cache features that no epoch reads again."""
    if recipe.data.views != 0 or recipe.model.feature_cache in ("auto", "off"):
        return ""
    return (
        f"augmentation_views is 0, a new view in every epoch, but feature_cache is {recipe.model.feature_cache}: "
        "give 2 or more views, or remove feature_cache"
    )


def _loader(recipe: Recipe) -> str:
    args = recipe.training
    for key in ("dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if getattr(args, key) is not None and args.dataloader_num_workers == 0:
            return f"{key} is {getattr(args, key)}, but dataloader_num_workers is 0: raise it to 1 or more"
    return ""


def _optimizer(recipe: Recipe) -> str:
    if not recipe.given & {"optim", *OPTIMIZER_ARGUMENTS}:
        return ""
    from transformers import Trainer  # takes time to import

    try:
        Trainer.get_optimizer_cls_and_kwargs(recipe.training)
    except Exception as error:  # a package is missing, or an argument is not understood
        arguments = f" and optim_args is {recipe.training.optim_args}" if recipe.training.optim_args else ""
        return f"optim is {recipe.training.optim.value}{arguments}: {error_line(error)}"
    return ""


def _optimizer_arguments(recipe: Recipe) -> str:
    """Return the first argument whose default gives the same optimizer."""
    args = recipe.training
    for key in OPTIMIZER_ARGUMENTS:
        if key not in recipe.given or getattr(args, key) == DEFAULTS[key]:
            continue
        from transformers import Trainer  # takes time to import

        default = copy.copy(args)
        setattr(default, key, DEFAULTS[key])
        if Trainer.get_optimizer_cls_and_kwargs(default) == Trainer.get_optimizer_cls_and_kwargs(args):
            return f"{key} has no effect on optim {args.optim.value}; remove it"
    return ""


def _schedule(recipe: Recipe) -> str:
    steps = recipe.training.max_steps
    return scheduler_fault(recipe.training, steps) if steps > 0 else scheduler_fault(recipe.training)


def _reports(recipe: Recipe) -> str:
    names = recipe.training.report_to or []
    alone = [name for name in ("none", "all") if name in names and len(names) > 1]
    return f"report_to lists {alone[0]!r} with others; give it alone, or only the others" if alone else ""


def _folder(recipe: Recipe) -> str:
    path = Path(recipe.training.output_dir)
    return f"output_dir {path} is a file; name a new folder" if path.is_file() else ""


def _push(recipe: Recipe) -> str:
    """Check that push_to_hub has an evaluated adapter to push after each epoch."""
    for key in ("eval_strategy", "save_strategy") if recipe.training.push_to_hub else ():
        if (value := getattr(recipe.training, key).value) != "epoch":
            return f"push_to_hub pushes evaluated and saved epochs: {key} is {value!r}, must be 'epoch'"
    return ""


def _scst(recipe: Recipe) -> str:
    """Check that self-critical training has a baseline, a start that captions images, and no smoothed labels."""
    scst, args = recipe.scst, recipe.training
    if scst.init_adapter and recipe.lora.lora_init is not True:
        return f"lora_init is {recipe.lora.lora_init}, but init_adapter replaces the initial weights: remove lora_init"
    if scst.loss != "scst":
        return ""
    if scst.scst_baseline == "mean" and scst.scst_samples == 1:
        return "scst_samples is 1, and scst_baseline mean needs others: raise it to 2 or more, or set greedy"
    if args.label_smoothing_factor:
        return "label_smoothing_factor has no effect on loss: scst, which has no labels; remove it"
    return ""


def _is_checkpointed(recipe: Recipe) -> bool:
    return bool(recipe.training.gradient_checkpointing or recipe.training.activation_checkpointing)


ADAPTED: Need = (lambda recipe: recipe.lora.adapter == "lora", "adapter: lora")
CHECKPOINTED = (_is_checkpointed, "gradient_checkpointing: true")
RERANKED: Need = (lambda recipe: recipe.generation.rerank == "consensus", "rerank: consensus")
SAMPLED: Need = (lambda recipe: recipe.scst.loss == "scst", "loss: scst")
PUSHED: Need = (lambda recipe: recipe.training.push_to_hub, "push_to_hub: true")
TRACKED: Need = (lambda recipe: "trackio" in (recipe.training.report_to or ()), "report_to: trackio")
# keys that another key switches off: when they are used, and what that needs
NEEDED: dict[str, Need] = {
    "eval_steps": (lambda recipe: recipe.training.eval_strategy == "steps", "eval_strategy: steps"),
    "save_steps": (lambda recipe: recipe.training.save_strategy == "steps", "save_strategy: steps"),
    "logging_steps": (lambda recipe: recipe.training.logging_strategy == "steps", "logging_strategy: steps"),
    "eval_delay": (lambda recipe: recipe.training.eval_strategy != "no", "eval_strategy: epoch or steps"),
    "gradient_checkpointing_kwargs": CHECKPOINTED,
    "activation_checkpointing_kwargs": CHECKPOINTED,
    "hub_model_id": PUSHED,
    "hub_private_repo": PUSHED,
    "hub_overwrite": PUSHED,
    "project": TRACKED,
    "trackio_space_id": TRACKED,
    "trackio_bucket_id": TRACKED,
    "trackio_static_space_id": TRACKED,
    "feature_cache_gb": (lambda recipe: recipe.model.feature_cache != "off", "feature_cache: auto or a folder"),
    **{field.name: ADAPTED for field in fields(LoraArguments) if field.name.startswith("lora_")},
    "init_adapter": ADAPTED,
    **{field.name: SAMPLED for field in fields(ScstArguments) if field.name.startswith("scst_")},
    "length_penalty": (lambda recipe: recipe.generation.num_beams > 1, "num_beams: 2 or more"),
    "augmentation_views": (lambda recipe: recipe.data.augmentation != "none", "augmentation: light or strong"),
    **{field.name: RERANKED for field in fields(GenerationArguments) if field.name.startswith("rerank_")},
    "fraction_seed": (lambda recipe: recipe.data.train_fraction < 1, "train_fraction below 1"),
    "optim_target_modules": (
        lambda recipe: recipe.training.optim.value.startswith(("galore", "apollo")),
        "optim: galore_adamw or apollo_adamw",
    ),
}
OPTIMIZER_ARGUMENTS = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
DEFAULTS = {field.name: field.default for group in GROUPS.values() for field in fields(group)}
Rule = tuple[tuple[str, ...], Callable[[Recipe], str]]
RULES: tuple[Rule, ...] = (
    (("data_dir", "data_weights", "train_sampling_strategy"), sources_fault),
    (("valid_fraction", "test_fraction"), _held_out),
    (("prompt", "max_caption_tokens"), _prompt),
    (("precision", "use_cpu"), _precision),
    (
        ("min_new_tokens", "max_new_tokens", "rerank", "rerank_candidates", "num_beams"),
        lambda recipe: generation_fault(recipe.generation),
    ),
    (("greater_is_better", "metric_for_best_model"), _direction),
    (("lr_scheduler_kwargs", "lr_scheduler_type", "greater_is_better", "metric_for_best_model"), _plateau_mode),
    (("early_stopping_patience", "eval_strategy"), _early_stopping),
    (("load_best_model_at_end", "save_steps", "eval_steps", "eval_strategy"), _best_is_saved),
    (("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), _checkpointing),
    (("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_num_workers"), _loader),
    (("optim", *OPTIMIZER_ARGUMENTS), _optimizer),
    (("optim", *OPTIMIZER_ARGUMENTS), _optimizer_arguments),
    (("tf32", "precision"), _tf32),
    (("augmentation_views", "feature_cache"), _views),
    *(((key,), partial(_without_effect, key)) for key in NEEDED),
    (("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"), _schedule),
    (("adapter", "train_vision", "quantization"), adapter_conflict),
    (
        ("lora_init", "lora_variant", "lora_lr_ratio", "lora_r", "lora_rank_pattern", "precision", "quantization"),
        init_conflict,
    ),
    (("loss", "init_adapter", "lora_init", "scst_samples", "scst_baseline", "label_smoothing_factor"), _scst),
    (("report_to",), _reports),
    (("output_dir",), _folder),
    (("push_to_hub", "eval_strategy", "save_strategy"), _push),
)
