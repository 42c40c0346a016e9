"""Train one recipe: one YAML file in, one run folder out.

    accelerate launch scripts/train.py --config recipes/phantom/lora.yaml --data_dir DATA --output_dir RUN
    accelerate launch scripts/train.py --config RUN/recipe.yaml --resume_from_checkpoint last

Leaves in RUN: recipe.yaml, environment.json, metrics.jsonl, samples/, checkpoint-*/ and adapter/, the best epoch's.
With `push_to_hub: true` every epoch is on the Hub as a revision too, and the best one as main.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import sys
from pathlib import Path

# this folder holds an evaluate.py, which must not be taken for the package `evaluate`
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from medcap.quiet import hush, one_line_errors

hush()  # before the libraries that have something to say on import

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import BlipProcessor, EarlyStoppingCallback, GenerationConfig, ProgressCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from medcap.data.captions import CaptionCollator, caption_lengths, cut_share
from medcap.data.images import with_pixel_values
from medcap.data.load import find_format, load_recipe_data
from medcap.data.selection import check_images
from medcap.evaluation.coco import Meteor
from medcap.evaluation.predictions import CaptionScores
from medcap.evaluation.report import write_sample_sheet
from medcap.evaluation.scoring import signature_pairs
from medcap.modeling.blip import first_token, generation_config, load_blip
from medcap.modeling.features import FeatureCache, open_cache
from medcap.modeling.lora import add_lora, trainable_summary
from medcap.modeling.precision import pick_precision, precision_name
from medcap.publish.epochs import EpochPushes
from medcap.publish.hub import build_release
from medcap.publish.places import next_release
from medcap.publish.push import Destination, HubUnreachableError, check_access
from medcap.recipe import Recipe, read_recipe
from medcap.training.callbacks import MetricsLog, Progress, Samples
from medcap.training.run import checkpoint_to_resume, save_adapter, start_run
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)


def main(words: list[str] | None = None) -> None:
    """Read the command line and train; ends with status 2 for a wrong recipe, 1 for failed work."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    with one_line_errors(debug):
        recipe = read_recipe(overrides=[word for word in words if word != "--debug"])
        train(recipe)


def train(recipe: Recipe) -> None:
    """Load base and data, train the adapter, and keep the best epoch's."""
    checkpoint = checkpoint_to_resume(recipe)
    to = push_destination(recipe)
    set_seed(recipe.training.seed)
    dtype = settle_precision(recipe)
    adapted, processor, captions = make_model(recipe, dtype)
    data = checked_data(recipe)  # after the model: a wrong size or target is said before every image is decoded
    run = Path(recipe.training.output_dir)
    if recipe.training.process_index == 0:
        start_run(recipe, data, precision_name(dtype))
        announce(recipe, data, adapted, processor)
    cache = open_features(recipe, data, adapted, processor, dtype)
    with Meteor() as meteor:
        pairs = signature_pairs("valid", data["valid"], captions, dtype)
        scores = CaptionScores(processor.tokenizer, data["valid"]["caption"], recipe.data.prompt, meteor, pairs)
        trainer = make_trainer(recipe, data, adapted, processor, captions, scores, cache)
        if to is not None:
            save = functools.partial(
                save_adapter, model=adapted, processor=processor, captions=captions, recipe=recipe
            )
            pushes = EpochPushes(run, to, save, scores, data["valid"]["image_id"])
            trainer.add_callback(pushes)
        trainer.train(resume_from_checkpoint=checkpoint)
        if cache is not None:
            cache.flush()
    if trainer.is_world_process_zero():
        save_adapter(run / "adapter", adapted, processor, captions, recipe)
        print(f"{run / 'adapter'}: the adapter of {best_epoch(trainer)}")
        if to is not None:
            release = build_release(run, next_release(run), repo_id=to.repo_id)
            print(pushes.finish(release))


def make_model(recipe: Recipe, dtype: torch.dtype) -> tuple[PeftModel, BlipProcessor, GenerationConfig]:
    """The base with a new adapter on it, its processor, and how it will generate."""
    model, processor = load_blip(
        recipe.model.model_name_or_path,
        image_size=recipe.model.image_size,
        quantization=recipe.model.quantization,
        revision=recipe.model.model_revision,
        dtype=dtype,
    )
    captions = generation_config(model, **vars(recipe.generation))
    adapted = add_lora(
        model,
        targets=recipe.lora.lora_target_modules,
        r=recipe.lora.lora_r,
        alpha=recipe.lora.lora_alpha,
        dropout=recipe.lora.lora_dropout,
        revision=recipe.model.model_revision,
    )
    return adapted, processor, captions


def push_destination(recipe: Recipe) -> Destination | None:
    """Where the recipe wants its epochs pushed to, if anywhere; OSError now when the token cannot do that then."""
    wanted = recipe.training
    if not wanted.push_to_hub:
        return None
    name = wanted.hub_model_id or Path(wanted.output_dir).name
    to = Destination(name, private=wanted.hub_private_repo is not False, overwrite=wanted.hub_overwrite)
    try:
        return dataclasses.replace(to, repo_id=check_access(to)) if wanted.process_index == 0 else to
    except HubUnreachableError as error:
        logger.warning("%s. Training goes on, and pushes when it can", error)
        return to


def settle_precision(recipe: Recipe) -> torch.dtype:
    """What the recipe's precision is on this device; the Trainer is told to compute in it."""
    dtype = pick_precision(recipe.model.precision, recipe.training.device)
    recipe.training.bf16, recipe.training.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    recipe.training.mixed_precision = "no" if dtype == torch.float32 else precision_name(dtype)
    return dtype


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


def checked_data(recipe: Recipe) -> DatasetDict:
    """The training and validation splits, every image of them decoded once: by one process, the others wait for it."""
    wanted = recipe.data
    with recipe.training.main_process_first(desc="decoding"):
        data = load_recipe_data(wanted, splits=("train", "valid"))
        for split, most in (("train", wanted.max_train_samples), ("valid", wanted.max_eval_samples)):
            data[split] = check_images(
                data[split].select(range(min(most or len(data[split]), len(data[split])))), wanted.max_broken
            )
    return data


def announce(recipe: Recipe, data: DatasetDict, model: PeftModel, processor: BlipProcessor) -> None:
    """Say on stderr what is about to be trained, and what the recipe cuts."""
    cut = cut_share(processor.tokenizer, data["train"]["caption"], recipe.data.max_caption_tokens)
    source = f"{recipe.data.data_dir} ({find_format(recipe.data.data_dir, recipe.data.data_format)})"
    sys.stderr.write(
        f"{len(data['train']):,} training and {len(data['valid']):,} validation images from {source}\n"
        f"{trainable_summary(model)}\n"
        f"{cut:.1%} of the training captions are longer than {recipe.data.max_caption_tokens} tokens and are cut\n"
    )


def make_trainer(
    recipe: Recipe,
    data: DatasetDict,
    model: PeftModel,
    processor: BlipProcessor,
    captions: GenerationConfig,
    scores: CaptionScores,
    cache: FeatureCache | None,
) -> CaptionTrainer:
    """The trainer, with our progress, log and samples in the place of the Trainer's printing."""
    run, valid = Path(recipe.training.output_dir), data["valid"]
    args = copy.copy(recipe.training)
    args.push_to_hub = False  # the Trainer's own skips epochs while one is on its way, and writes over what it sends
    trainer = CaptionTrainer(
        model=model,
        args=args,
        captions=captions,
        prompt=recipe.data.prompt,
        features=cache,
        train_dataset=pixels_and_captions(data["train"], processor, cache),
        eval_dataset=pixels_and_captions(valid, processor, cache),
        data_collator=CaptionCollator(
            processor.tokenizer, first_token(model), recipe.data.max_caption_tokens, recipe.data.prompt
        ),
        processing_class=processor,
        compute_metrics=scores,
        callbacks=[Progress(), MetricsLog(run), samples(run, valid.select(range(min(8, len(valid)))), scores)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if recipe.training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    return trainer


def samples(run: Path, few: Dataset, scores: CaptionScores) -> Samples:
    """What the model says of a `few` images after each epoch, as text and as a picture."""
    references = list(few["caption"])

    def draw(path: Path, predictions: list[str]) -> None:
        write_sample_sheet(path, few, {"reference": references, "prediction": predictions})

    return Samples(run, list(few["image_id"]), references, scores, draw)


def pixels_and_captions(rows: Dataset, processor: BlipProcessor, cache: FeatureCache | None) -> Dataset:
    """What the collator needs of each row, with its number and length; pixels or features are read with the row."""
    numbered = rows.select_columns(["image_id", "image", "caption"]).add_column("row", list(range(len(rows))))
    numbered = numbered.add_column("length", caption_lengths(processor.tokenizer, rows["caption"]))
    return with_pixel_values(numbered, processor.image_processor, None if cache is None else cache.get)


def best_epoch(trainer: CaptionTrainer) -> str:
    """In words: which epoch the adapter is from, and why."""
    best, metric = trainer.state.best_model_checkpoint, trainer.args.metric_for_best_model
    if best is None or trainer.state.best_metric is None:
        return "the last step"
    return f"{Path(best).name}, the best by {metric} ({trainer.state.best_metric:.4f})"


if __name__ == "__main__":
    main()
