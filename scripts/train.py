"""Train one recipe: one YAML file in, one run folder out.

    accelerate launch scripts/train.py --config recipes/phantom/lora.yaml --data_dir DATA --output_dir RUN
    accelerate launch scripts/train.py --config RUN/recipe.yaml --resume_from_checkpoint last
    accelerate launch scripts/train.py --config recipes/phantom/lora.yaml --data_dir DATA --dry_run

Leaves in RUN: recipe.yaml, environment.json, metrics.jsonl, samples/, checkpoint-*/ and adapter/, the best epoch's.
With `push_to_hub: true` every epoch is on the Hub as a revision too, and the best one as main. A dry run leaves
nothing: it does everything once, and prints what the run will take.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# this folder holds an evaluate.py, which must not be taken for the package `evaluate`
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from medcap.quiet import hush, one_line_errors

hush()  # before the libraries that have something to say on import

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import (
    BlipProcessor,
    EarlyStoppingCallback,
    GenerationConfig,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
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
from medcap.publish.epochs import EpochPushes, push_run, run_release
from medcap.publish.push import Destination, HubUnreachableError, check_access
from medcap.recipe import Recipe, RecipeError, read_recipe
from medcap.training.callbacks import MetricsLog, Progress, Samples
from medcap.training.dry_run import Clock, check_reporters, few_images, rehearsal
from medcap.training.faults import faults_named
from medcap.training.health import Health, token_entropy
from medcap.training.memory import MemoryReport
from medcap.training.plan import Schedule, features_room, plan, run_room
from medcap.training.resume import checkpoint_to_resume, is_finished, recipe_changes, refuse_changes
from medcap.training.run import record_time, remove_leftovers, save_adapter, start_run
from medcap.training.stop import StopSignals
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)


def main(words: list[str] | None = None) -> None:
    """Read the command line and train; ends with status 2 for a wrong recipe, 1 for failed work."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `medcap train` ignores it, while it waits
    with one_line_errors(debug):
        recipe = read_recipe(overrides=[word for word in words if word != "--debug"])
        if lacks_pushes_alone(recipe):
            complete_pushes(recipe)
        else:
            train(recipe)


def train(recipe: Recipe) -> None:
    """Load base and data, train the adapter, and keep the best epoch's."""
    check_devices(recipe)
    run = Path(recipe.training.output_dir)
    checkpoint = checkpoint_to_resume(recipe)
    to = push_destination(recipe)
    set_seed(recipe.training.seed)
    dtype = settle_precision(recipe)
    adapted, processor, captions = make_model(recipe, dtype)
    if recipe.training.dry_run:
        dry_run(recipe, adapted, processor, captions, dtype, checkpoint)
        return
    data = checked_data(recipe)  # after the model: a wrong size or target is said before every image is decoded
    if recipe.training.process_index == 0:
        announce(recipe, data, adapted, processor)
    trainer, pushes = fit(recipe, data, adapted, processor, captions, dtype, checkpoint, to)
    if trainer.is_world_process_zero():
        print(f"{run / 'adapter'}: the adapter of {best_epoch(trainer)}")
        if to is not None and pushes is not None:
            print(pushes.finish(run_release(run, to)))
    trainer.accelerator.wait_for_everyone()  # or a scheduler sees processes end while one is still at work
    trainer.accelerator.end_training()


def fit(
    recipe: Recipe,
    data: DatasetDict,
    adapted: PeftModel,
    processor: BlipProcessor,
    captions: GenerationConfig,
    dtype: torch.dtype,
    checkpoint: str | None = None,
    to: Destination | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[CaptionTrainer, EpochPushes | None]:
    """Write the run's folder: epochs, from `checkpoint` on where there is one, and the adapter; pushed to `to`."""
    run, pushes, is_main = Path(recipe.training.output_dir), None, recipe.training.process_index == 0
    if is_main:
        start_run(recipe, data, precision_name(dtype), adapted, checkpoint)
    cache = open_features(recipe, data, adapted, processor, dtype)
    with Meteor() if is_main else contextlib.nullcontext() as meteor:  # one process scores
        pairs = signature_pairs("valid", data["valid"], captions, dtype)
        scores = CaptionScores(processor.tokenizer, data["valid"]["caption"], recipe.data.prompt, meteor, pairs)
        trainer = make_trainer(recipe, data, adapted, processor, captions, scores, cache)
        if to is not None:
            save = functools.partial(
                save_adapter, model=adapted, processor=processor, captions=captions, recipe=recipe
            )
            pushes = EpochPushes(run, to, save, scores, data["valid"]["image_id"])
            trainer.add_callback(pushes)
        for callback in callbacks:
            trainer.add_callback(callback)
        signals = StopSignals(trainer)
        trainer.add_callback(signals)
        with signals.heeded(), faults_named():
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds = trainer.health.seconds
        trainer.encoder.flush()
    if trainer.is_world_process_zero():
        record_time(run, seconds)
        save_adapter(run / "adapter", adapted, processor, captions, recipe)
    return trainer, pushes


def dry_run(
    recipe: Recipe,
    adapted: PeftModel,
    processor: BlipProcessor,
    captions: GenerationConfig,
    dtype: torch.dtype,
    checkpoint: str | None,
) -> None:
    """Do everything once on a few images, leave nothing, and print the plan of the run on stdout."""
    args = recipe.training
    check_reporters(args)
    whole = wanted_data(recipe)
    schedule = Schedule.of(args, len(whole["train"]))
    few, looked_at = few_images(recipe, whole, processor.tokenizer, schedule.batch)
    clock = Clock()
    with rehearsal(recipe) as small:
        trainer, _ = fit(small, few, adapted, processor, captions, dtype, callbacks=[clock])
        run = run_room(args, Path(small.training.output_dir), schedule)
    run.check()
    features = features_room(recipe, sum(map(len, whole.values())), adapted, dtype)
    if features is not None and recipe.model.feature_cache != "auto":  # auto does without where there is no room
        features.check()
    if args.process_index == 0:
        (memory,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, MemoryReport))
        seen = {
            "dry run": f"nothing was found wrong, and nothing is left of it in {args.output_dir}",
            "start": f"from {checkpoint}" if checkpoint else "anew",
            "data": f"{len(whole['train']):,} training and {len(whole['valid']):,} validation images from "
            f"{recipe.data.data_dir}; {looked_at:,} were decoded to see that they can be, the run decodes all",
            **plan(adapted, schedule, dtype),
            "memory": memory.outcome().removeprefix("memory: "),
            "disk": f"{run}",
            "features": f"{features}" if features else "not kept",
            "time": clock.measured(len(few["valid"])).plan(schedule, len(whole["valid"])),
            "caption": f"{first_caption(trainer)!r}, by the adapter of the dry run",
        }
        print("\n".join(f"{name}: {text}" for name, text in seen.items()))


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


def lacks_pushes_alone(recipe: Recipe) -> bool:
    """Whether the run is trained and may have been killed while it pushed."""
    wanted = recipe.training
    asked = wanted.resume_from_checkpoint is not None or wanted.dry_run
    return wanted.push_to_hub and not asked and is_finished(Path(wanted.output_dir))


def complete_pushes(recipe: Recipe) -> None:
    """Push what the Hub lacks of a run that is trained."""
    run = Path(recipe.training.output_dir)
    refuse_changes(recipe, recipe_changes(run / "recipe.yaml", recipe))
    to = push_destination(recipe)
    if to is not None and recipe.training.process_index == 0:
        logger.warning("%s is trained; what the Hub lacks of it is pushed", run)
        remove_leftovers(run)
        print(push_run(run, run_release(run, to), to))


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
    with recipe.training.main_process_first(desc="decoding"):
        data = wanted_data(recipe)
        for split in data:
            data[split] = check_images(data[split], recipe.data.max_broken)
    return data


def wanted_data(recipe: Recipe) -> DatasetDict:
    """The training and validation splits as the recipe wants them, not decoded yet."""
    data = load_recipe_data(recipe.data, splits=("train", "valid"))
    for split, most in (("train", recipe.data.max_train_samples), ("valid", recipe.data.max_eval_samples)):
        data[split] = data[split].select(range(min(most or len(data[split]), len(data[split]))))
    return data


def first_caption(trainer: CaptionTrainer) -> str:
    """The first caption of the last evaluation; "" where none was made."""
    assert isinstance(trainer.scores, CaptionScores)
    return trainer.scores.predictions[0] if trainer.scores.predictions else ""


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
    health = Health(token_entropy(processor.tokenizer, data["train"]["caption"], recipe.data.max_caption_tokens))
    args.restore_callback_states_from_checkpoint = True  # of early stopping: how many evaluations were worse so far
    args.push_to_hub = False  # the Trainer's own skips epochs while one is on its way, and writes over what it sends
    trainer = CaptionTrainer(
        model=model,
        args=args,
        captions=captions,
        prompt=recipe.data.prompt,
        features=cache,
        health=health,
        train_dataset=pixels_and_captions(data["train"], processor, cache),
        eval_dataset=pixels_and_captions(valid, processor, cache),
        data_collator=CaptionCollator(
            processor.tokenizer, first_token(model), recipe.data.max_caption_tokens, recipe.data.prompt
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
