"""From a recipe to what a run is made of: device, base with adapter, data, features, trainer."""

from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import BlipProcessor, EarlyStoppingCallback, GenerationConfig, ProgressCallback
from transformers.trainer_callback import PrinterCallback

from medcap.data.captions import CaptionCollator, caption_lengths, cut_fraction
from medcap.data.images import with_pixel_values
from medcap.data.load import find_layout, load_recipe_data
from medcap.data.selection import check_images
from medcap.modeling.blip import first_token_id, load_blip, make_generation_config
from medcap.modeling.feature_cache import FeatureCache, open_cache
from medcap.modeling.lora import add_lora, trainable_summary
from medcap.modeling.precision import allow_tf32, precision_name, resolve_dtype
from medcap.recipe import Recipe, RecipeError
from medcap.reporting.plots import write_sample_sheet
from medcap.training.callbacks import MetricsLog, Progress, Samples
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.memory import MemoryReport
from medcap.training.monitors import TrainingMonitor, token_entropy
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)


def check_devices(recipe: Recipe) -> None:
    """RecipeError for what would train otherwise than it was asked to, in silence.

    Several GPUs in one process are torch's DataParallel, which weighs captions by the GPU that they went to; without a
    GPU, accelerate takes FSDP and DeepSpeed for plain processes.
    """
    gpus, device = recipe.training.n_gpu, recipe.training.device
    if gpus > 1:
        raise RecipeError(
            f"{gpus} GPUs and one process: start one for each with `medcap train --accelerate ddp` or "
            "`accelerate launch`, or let it see one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    for engine in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{engine}") == "true" and device.type == "cpu":
            raise RecipeError(f"{engine} shares a model out over GPUs, and here is none: take --accelerate cpu-ddp")


def resolve_precision(recipe: Recipe) -> torch.dtype:
    """What the recipe's precision is on this device; the Trainer is told to compute in it."""
    allow_tf32(recipe.model.precision, recipe.training.device)
    dtype = resolve_dtype(recipe.model.precision, recipe.training.device)
    recipe.training.bf16, recipe.training.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    recipe.training.mixed_precision = "no" if dtype == torch.float32 else precision_name(dtype)
    return dtype


def make_model(recipe: Recipe, dtype: torch.dtype) -> tuple[PeftModel, BlipProcessor, GenerationConfig]:
    """The base with a new adapter on it, its processor, and how it will generate."""
    model, processor = load_blip(
        recipe.model.model_name_or_path,
        image_size=recipe.model.image_size,
        quantization=recipe.model.quantization,
        revision=recipe.model.model_revision,
        dtype=dtype,
        model_code=recipe.model.model_code,
    )
    generation_config = make_generation_config(model, **vars(recipe.generation))
    adapted = add_lora(
        model,
        targets=recipe.lora.lora_target_modules,
        r=recipe.lora.lora_r,
        alpha=recipe.lora.lora_alpha,
        dropout=recipe.lora.lora_dropout,
        revision=recipe.model.model_revision,
    )
    return adapted, processor, generation_config


def wanted_data(recipe: Recipe) -> DatasetDict:
    """The training and validation splits as the recipe wants them, not decoded yet."""
    data = load_recipe_data(recipe.data, splits=("train", "valid"))
    for split, most in (("train", recipe.data.max_train_samples), ("valid", recipe.data.max_eval_samples)):
        data[split] = data[split].select(range(min(most or len(data[split]), len(data[split]))))
    return data


def checked_data(recipe: Recipe) -> DatasetDict:
    """The training and validation splits, every image of them decoded once: by one process, the others wait for it."""
    with recipe.training.main_process_first(desc="decoding"):
        data = wanted_data(recipe)
        for split in data:
            data[split] = check_images(data[split], recipe.data.max_broken)
    return data


def announce(recipe: Recipe, data: DatasetDict, model: PeftModel, processor: BlipProcessor) -> None:
    """Say on stderr what is about to be trained, and what the recipe cuts."""
    cut = cut_fraction(processor.tokenizer, data["train"]["caption"], recipe.data.max_caption_tokens)
    source = f"{recipe.data.data_dir} ({find_layout(recipe.data.data_dir, recipe.data.data_format)})"
    sys.stderr.write(
        f"{len(data['train']):,} training and {len(data['valid']):,} validation images from {source}\n"
        f"{trainable_summary(model)}\n"
        f"{cut:.1%} of the training captions are longer than {recipe.data.max_caption_tokens} tokens and are cut\n"
    )


def open_features(
    recipe: Recipe, data: DatasetDict, model: PeftModel, processor: BlipProcessor, dtype: torch.dtype
) -> FeatureCache | None:
    """Where the tower's outputs are kept, or None; an image that is needed once is not."""
    wanted, images = recipe.model.feature_cache, sum(map(len, data.values()))
    if wanted == "auto" and recipe.training.num_train_epochs <= 1:
        return None
    cache = open_cache(wanted, model.get_base_model(), processor, dtype, images)
    if cache is not None and recipe.training.process_index == 0:
        sys.stderr.write(f"{cache.describe(images)}\n")
    return cache


def make_trainer(
    recipe: Recipe,
    data: DatasetDict,
    model: PeftModel,
    processor: BlipProcessor,
    generation_config: GenerationConfig,
    scores: CaptionMetrics,
    cache: FeatureCache | None,
) -> CaptionTrainer:
    """The trainer, with our progress, log and samples in the place of the Trainer's printing."""
    run, valid = Path(recipe.training.output_dir), data["valid"]
    args = copy.copy(recipe.training)
    health = TrainingMonitor(
        token_entropy(processor.tokenizer, data["train"]["caption"], recipe.data.max_caption_tokens)
    )
    args.restore_callback_states_from_checkpoint = True  # of early stopping: how many evaluations were worse so far
    args.push_to_hub = False  # the Trainer's own skips epochs while one is on its way, and writes over what it sends
    trainer = CaptionTrainer(
        model=model,
        args=args,
        generation_config=generation_config,
        prompt=recipe.data.prompt,
        features=cache,
        health=health,
        train_dataset=pixels_and_captions(data["train"], processor, cache),
        eval_dataset=pixels_and_captions(valid, processor, cache),
        data_collator=CaptionCollator(
            processor.tokenizer, first_token_id(model), recipe.data.max_caption_tokens, recipe.data.prompt
        ),
        processing_class=processor,
        compute_metrics=scores,
        callbacks=[MetricsLog(run, health), samples(run, valid.select(range(min(8, len(valid)))), scores)],
    )
    trainer.add_callback(MemoryReport(trainer))
    trainer.add_callback(Progress())  # after it: its line comes before the bar
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if recipe.training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    return trainer


def samples(run: Path, few: Dataset, scores: CaptionMetrics) -> Samples:
    """What the model says of a `few` images after each epoch, as text and as a picture."""
    references = list(few["caption"])

    def draw(path: Path, predictions: list[str]) -> None:
        write_sample_sheet(path, few, {"reference": references, "prediction": predictions})

    return Samples(run, list(few["image_id"]), references, scores, draw)


def pixels_and_captions(rows: Dataset, processor: BlipProcessor, cache: FeatureCache | None) -> Dataset:
    """What the collator needs of each row, with its number and length; pixels or features are read with the row."""
    numbered = rows.select_columns(["image_id", "image", "caption"])
    numbered = numbered.add_column("length", caption_lengths(processor.tokenizer, rows["caption"]))
    return with_pixel_values(numbered, processor.image_processor, None if cache is None else cache.get)
