"""Set up a run from its recipe: device, base model with adapter, data, feature cache and trainer."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    ProgressCallback,
)
from transformers.trainer_callback import PrinterCallback

from medcap.data.augmentation import Augmentation
from medcap.data.captions import TokenizedCaptions
from medcap.data.images import with_pixel_values
from medcap.data.load import describe_sources, load_recipe_data
from medcap.data.selection import check_images, sample_rows
from medcap.data.sources import rows_by_source, source_names
from medcap.modeling.families import Family, family_of
from medcap.modeling.feature_cache import open_cache
from medcap.modeling.feature_store import FeatureCache
from medcap.modeling.full import train_all
from medcap.modeling.load import load_base, weights_sha256
from medcap.modeling.lora import add_lora, trainable_summary
from medcap.modeling.lora_init import initial_weights, load_initial_adapter
from medcap.modeling.lora_options import lora_options
from medcap.modeling.precision import allow_tf32, precision_name, resolve_dtype
from medcap.modeling.untrained import untrained_warning
from medcap.recipe import Recipe, RecipeError
from medcap.recipe.rules import MIN_CAPTION_TOKENS
from medcap.training.callbacks import Draw, EpochViews, MetricsLog, Progress, Samples
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.memory import MemoryReport
from medcap.training.monitors import TrainingMonitor
from medcap.training.plan import cached_images, check_steps, reuses_features
from medcap.training.rows import SourceSampler
from medcap.training.scst import RewardLog, ScstTrainer
from medcap.training.sharding import sharding_engine
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)

SAMPLES = 8  # validation images whose predictions are written after each epoch


@dataclass(frozen=True)
class AdaptedModel:
    """A base model with an adapter, or one that is trained itself, and what it is used with.

    Attributes:
        model: The base with its adapter, or without one.
        family: The base and its processor.
        generation_config: Settings of evaluations.
        dtype: Of the computation.
        base_sha256: Of the base's weights as loaded; "" except on the main process.
        initial: The adapter's weights before training, if they were subtracted from the base.
    """

    model: PeftModel | PreTrainedModel
    family: Family
    generation_config: GenerationConfig
    dtype: torch.dtype
    base_sha256: str
    initial: Mapping[str, torch.Tensor]

    @property
    def processor(self) -> ProcessorMixin:
        """The processor of the base, with the image size of the recipe."""
        return self.family.processor


def check_devices(recipe: Recipe) -> None:
    """Raise RecipeError for devices on which libraries would silently train in another way.

    With several GPUs in one process the Trainer uses DataParallel, which weights captions by the GPU that they are
    on. Without a GPU, accelerate replaces FSDP and DeepSpeed by plain processes.
    """
    gpus, device = recipe.training.n_gpu, recipe.training.device
    if gpus > 1:
        raise RecipeError(
            f"{gpus} GPUs but one process: start one process per GPU with `medcap train --accelerate ddp` or "
            "`accelerate launch`, or select one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    if recipe.training.fsdp and recipe.training.world_size == 1:
        raise RecipeError("fsdp needs several processes: start them with `medcap train --accelerate fsdp2`")
    if (engine := sharding_engine()) and device.type == "cpu":
        raise RecipeError(f"{engine} shards a model over GPUs, and there is none: use --accelerate cpu-ddp")


def resolve_precision(recipe: Recipe) -> torch.dtype:
    """Return the dtype of the recipe's precision on this device."""
    allow_tf32(recipe.model.precision, recipe.training.device)
    return resolve_dtype(recipe.model.precision, recipe.training.device)


def make_model(recipe: Recipe, dtype: torch.dtype) -> AdaptedModel:
    """Load the base model of a recipe and add a new adapter, or make its own weights trainable, in float32."""
    is_full = recipe.lora.adapter == "none"
    base, processor = load_base(
        recipe.model.model_name_or_path,
        image_size=recipe.model.image_size,
        quantization=recipe.model.quantization,
        revision=recipe.model.model_revision,
        dtype=torch.float32 if is_full else dtype,
        model_code=recipe.model.model_code,
    )
    family = family_of(base, processor)
    check_caption_tokens(recipe, family)
    generation_config = family.make_generation_config(**vars(recipe.generation))
    sha256 = weights_sha256(base) if recipe.training.process_index == 0 else ""
    model = train_all(family, recipe.lora.train_vision) if is_full else _with_lora(base, recipe)
    if recipe.scst.init_adapter is not None:
        load_initial_adapter(model, recipe.scst.init_adapter)
    return AdaptedModel(model, family, generation_config, dtype, sha256, initial_weights(model))


def _with_lora(base: PreTrainedModel, recipe: Recipe) -> PeftModel:
    return add_lora(
        base,
        targets=recipe.lora.lora_target_modules,
        r=recipe.lora.lora_r,
        alpha=recipe.lora.lora_alpha,
        dropout=recipe.lora.lora_dropout,
        revision=recipe.model.model_revision,
        options=lora_options(recipe.lora),
    )


def check_caption_tokens(recipe: Recipe, family: Family) -> None:
    """Raise RecipeError if the text decoder, or max_caption_tokens, has no room for the prompt and a caption."""
    prompt, most = recipe.data.prompt, recipe.data.max_caption_tokens
    tokens = family.check_prompt(prompt, recipe.generation.max_new_tokens)
    if (positions := family.positions) is not None and most > positions:
        raise RecipeError(f"max_caption_tokens is {most:,}; the text decoder has room for {positions:,}")
    if tokens + MIN_CAPTION_TOKENS > most:
        raise RecipeError(
            f"prompt has {tokens:,} tokens and leaves no room for captions in max_caption_tokens, {most:,}"
        )


def load_splits(recipe: Recipe) -> DatasetDict:
    """Return the training and validation splits that the recipe selects, images not decoded."""
    data = load_recipe_data(recipe.data, splits=("train", "valid"))
    for split, limit in (("train", recipe.data.max_train_samples), ("valid", recipe.data.max_eval_samples)):
        data[split] = sample_rows(data[split], limit)
    return data


def load_checked_splits(recipe: Recipe) -> DatasetDict:
    """Return `load_splits` after every image was decoded once, by the main process while the others wait.

    Raises RecipeError, before decoding, if the recipe does not suit the number of images.
    """
    with recipe.training.main_process_first(desc="decoding"):
        data = load_splits(recipe)
        check_steps(recipe.training, images_per_epoch(recipe, data["train"]))
        for split in data:
            data[split] = check_images(data[split], recipe.data.max_broken)
    check_steps(recipe.training, images_per_epoch(recipe, data["train"]))  # without unreadable images
    return data


def source_sampler(recipe: Recipe, rows: Dataset) -> SourceSampler | None:
    """Return the sampler that draws the training rows of each source by `data_weights`; None for every row once.

    Raises RecipeError if a source has no training images.
    """
    weights, sources = recipe.data.data_weights or (), rows_by_source(rows)
    if all(weight == 1 for weight in weights):
        return None
    names = source_names(recipe.data.data_dir)
    if empty := [name for name in names if name not in sources]:
        raise RecipeError(f"data_weights draws from {empty[0]}, which has no training images: remove it")
    args = recipe.training
    seed = args.seed if args.data_seed is None else args.data_seed
    return SourceSampler([sources[name] for name in names], weights, seed)


def images_per_epoch(recipe: Recipe, rows: Dataset) -> int:
    """Return the number of training images in an epoch; repeated ones count as often as they are drawn."""
    sampler = source_sampler(recipe, rows)
    return len(rows) if sampler is None else len(sampler)


def tokenize_captions(recipe: Recipe, data: DatasetDict, family: Family) -> TokenizedCaptions:
    """Tokenize the training captions behind the prompt of the recipe; warn of tokens with untrained embeddings."""
    captions = family.tokenized(data["train"]["caption"], recipe.data.prompt)
    if recipe.training.process_index == 0 and (line := untrained_warning(family.base, captions)):
        logger.warning("%s", line)
    return captions


def print_summary(
    recipe: Recipe, data: DatasetDict, model: PeftModel | PreTrainedModel, captions: TokenizedCaptions
) -> None:
    """Print on stderr the data, the trainable parameters, and the fraction of captions that is cut."""
    cut = captions.cut_fraction(recipe.data.max_caption_tokens)
    source = describe_sources(recipe.data.data_dir, recipe.data.data_format)
    sys.stderr.write(
        f"{len(data['train']):,} training and {len(data['valid']):,} validation images from {source}\n"
        f"{trainable_summary(model)}\n"
        f"{cut:.1%} of the training captions are longer than {recipe.data.max_caption_tokens} tokens and are cut\n"
    )


def open_feature_cache(recipe: Recipe, data: DatasetDict, adapted: AdaptedModel) -> FeatureCache | None:
    """Return the cache of the vision encoder's outputs; None if the recipe has none or would not reuse it.

    Processes that share a sharded model have none: all of them must encode as often.
    """
    setting, images = recipe.model.feature_cache, cached_images(recipe, data)
    if (engine := sharding_engine()) and setting != "off" and recipe.training.process_index == 0:
        sys.stderr.write(f"no feature cache: with {engine} all processes must encode as many images\n")
    if engine or (setting == "auto" and not reuses_features(recipe)):
        return None
    limit = recipe.model.feature_cache_gb
    cache = open_cache(setting, adapted.family, adapted.dtype, images, limit)
    if cache is not None and recipe.training.process_index == 0:
        sys.stderr.write(f"{cache.describe(images)}\n")
    return cache


def make_trainer(
    recipe: Recipe,
    data: DatasetDict,
    captions: TokenizedCaptions,
    adapted: AdaptedModel,
    scores: CaptionMetrics,
    cache: FeatureCache | None,
    draw: Draw,
) -> CaptionTrainer:
    """Return the trainer of a run, with medcap's progress bar, log and samples instead of the Trainer's output.

    `captions` holds the tokens of the training captions, `scores` computes the metrics of an evaluation, and `draw`
    draws the sample images with their captions after each epoch. The recipe is not changed.
    """
    run, valid, family = Path(recipe.training.output_dir), data["valid"], adapted.family
    max_tokens, prompt = recipe.data.max_caption_tokens, recipe.data.prompt
    args, dtype = copy.copy(recipe.training), adapted.dtype
    args.bf16, args.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    args.mixed_precision = "no" if dtype == torch.float32 else precision_name(dtype)
    args.restore_callback_states_from_checkpoint = True  # early stopping counts the worse evaluations
    args.push_to_hub = False  # the Trainer's own push skips epochs while one is uploaded, and overwrites its files
    augmentation = recipe_augmentation(recipe)
    is_scst = recipe.scst.loss == "scst"
    monitor = TrainingMonitor(None if is_scst else captions.entropy(max_tokens))
    make = (
        partial(ScstTrainer, scst=recipe.scst, train=data["train"].select_columns(["image_id", "caption"]))
        if is_scst
        else CaptionTrainer
    )
    samples = valid.select(range(min(SAMPLES, len(valid))))
    trainer = make(
        model=adapted.model,
        args=args,
        generation_config=adapted.generation_config,
        prompt=prompt,
        features=cache,
        monitor=monitor,
        lora_lr_ratio=recipe.lora.lora_lr_ratio,
        sampler=source_sampler(recipe, data["train"]),
        train_dataset=trainer_rows(data["train"].add_column("length", captions.lengths), family, cache, augmentation),
        eval_dataset=trainer_rows(valid, family, cache),
        data_collator=family.collator(max_tokens, prompt),
        processing_class=family.processor,
        compute_metrics=scores,
        callbacks=[MetricsLog(run, monitor), Samples(run, samples, scores, draw)],
    )
    if augmentation is not None:
        trainer.add_callback(EpochViews(augmentation))
    if isinstance(trainer, ScstTrainer):
        trainer.add_callback(RewardLog(run, trainer))
    trainer.add_callback(MemoryReport(trainer))
    trainer.add_callback(Progress())  # after MemoryReport, whose line comes before the bar
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if recipe.training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    return trainer


def recipe_augmentation(recipe: Recipe) -> Augmentation | None:
    """Return the augmentation of a recipe; None if it has none. Views depend on `data_seed`, or else `seed`."""
    if recipe.data.augmentation == "none":
        return None
    args = recipe.training
    return Augmentation(
        recipe.data.augmentation, recipe.data.views, args.seed if args.data_seed is None else args.data_seed
    )


def trainer_rows(
    rows: Dataset, family: Family, cache: FeatureCache | None, augmentation: Augmentation | None = None
) -> Dataset:
    """Return rows for the collator; the pixels or features of a row are read on access."""
    used = [name for name in ("image_id", "image", "caption", "length") if name in rows.column_names]
    read = None if cache is None else cache.get
    return with_pixel_values(rows.select_columns(used), family.pixels(), read, augmentation)
