"""Train one recipe: one YAML file in, one run folder out.

    accelerate launch scripts/train.py --config recipes/phantom/lora.yaml --data_dir DATA --output_dir RUN
    accelerate launch scripts/train.py --config RUN/recipe.yaml --resume_from_checkpoint last
    accelerate launch scripts/train.py --config recipes/phantom/lora.yaml --data_dir DATA --dry_run

RUN then holds recipe.yaml, environment.json, metrics.jsonl, curves.png, training.html, samples/, checkpoint-*/, and
adapter/ of the best epoch; with `augmentation`, augmentation.png shows examples. With `push_to_hub: true` every epoch
becomes a revision on the Hub, and the best one main. A dry run does everything once, prints a plan of the full run,
and leaves no files, except augmentation.png.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from medcap.logs import configure_logging, report_errors

configure_logging()  # before the imports, some of which print messages

from datasets import Dataset, DatasetDict
from transformers import TrainerCallback, set_seed

from medcap.data.captions import TokenizedCaptions
from medcap.data.load import describe_sources
from medcap.evaluation.scoring import signature_pairs
from medcap.locks import lock_folder
from medcap.modeling.adapter import trained_folder
from medcap.modeling.generation import without_reranking
from medcap.modeling.precision import precision_name
from medcap.private_hooks import check_hooks
from medcap.publish.epoch_releases import EpochReleaseCallback, push_run, run_release
from medcap.publish.hub_client import Destination, push_destination
from medcap.recipe import Recipe, read_recipe
from medcap.reporting.plots import write_augmentation_sheet, write_sample_sheet
from medcap.reporting.training_page import TrainingPage
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.dry_run import StepTimer, check_reporters, dry_run_data, dry_run_recipe
from medcap.training.memory import MemoryReport
from medcap.training.plan import (
    Schedule,
    cached_images,
    check_steps,
    describe_plan,
    feature_disk_space,
    run_disk_space,
)
from medcap.training.preemption import PreemptionCallback
from medcap.training.rewards import caption_checks
from medcap.training.rows import reader_errors
from medcap.training.run_folder import (
    checkpoint_to_resume,
    is_finished,
    recipe_changes,
    record_time,
    refuse_changes,
    remove_leftovers,
    save_trained,
    start_run,
)
from medcap.training.setup import (
    AdaptedModel,
    check_devices,
    images_per_epoch,
    load_checked_splits,
    load_splits,
    make_model,
    make_trainer,
    open_feature_cache,
    print_summary,
    recipe_augmentation,
    resolve_precision,
    tokenize_captions,
)
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and train; exit with status 2 for a wrong recipe, and 1 for failed work."""
    argv = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `medcap train` starts this process with SIGINT ignored
    with report_errors(debug="--debug" in argv):
        recipe = read_recipe(overrides=[argument for argument in argv if argument != "--debug"])
        args = recipe.training
        writes = args.process_index == 0 and not args.dry_run
        with lock_folder(Path(args.output_dir)) if writes else contextlib.nullcontext():
            if only_pushes_are_missing(recipe):
                complete_pushes(recipe)
            else:
                train(recipe)


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Load model and data, train, save the weights of the best epoch, and push them if the recipe says so."""
    for library in ("transformers", "torch"):
        check_hooks(library)
    check_devices(recipe)
    check_reporters(recipe.training)
    checkpoint = checkpoint_to_resume(recipe)
    destination = push_destination(recipe)
    set_seed(recipe.training.seed)
    adapted = make_model(recipe, resolve_precision(recipe))
    if recipe.training.dry_run:
        dry_run(recipe, adapted, checkpoint)
        return
    data = load_checked_splits(recipe)  # after the model: a wrong size or target fails before images are decoded
    captions = tokenize_captions(recipe, data, adapted.family)
    if recipe.training.process_index == 0:
        print_summary(recipe, data, adapted.model, captions)
    page = TrainingPage(Path(recipe.training.output_dir), data["valid"])
    trainer, pushes = fit(recipe, data, captions, adapted, checkpoint, destination, [*callbacks, page])
    if trainer.is_world_process_zero():
        run = Path(recipe.training.output_dir)
        result = trained_folder(run)
        print(f"{result}: {describe_best(trainer, result.name)}")
        if destination is not None and pushes is not None:
            print(pushes.finish(run_release(run, destination)))
    trainer.accelerator.wait_for_everyone()  # a scheduler would see processes end while another one still works
    trainer.accelerator.end_training()


def fit(
    recipe: Recipe,
    data: DatasetDict,
    captions: TokenizedCaptions,
    adapted: AdaptedModel,
    checkpoint: str | None = None,
    destination: Destination | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[CaptionTrainer, EpochReleaseCallback | None]:
    """Train all epochs and write the folder of the run; with a destination, push a release after each epoch.

    `data` holds the checked training and validation splits, `captions` the tokens of the training captions. Returns
    the trainer, and the pushes if there is a destination.
    """
    run, is_main, pushes = Path(recipe.training.output_dir), recipe.training.process_index == 0, None
    save, valid = functools.partial(save_trained, adapted=adapted, recipe=recipe), data["valid"]
    if is_main:
        start_run(recipe, data, adapted, checkpoint)
        draw_views(recipe, data["train"])
    cache = open_feature_cache(recipe, data, adapted)
    settings = without_reranking(adapted.generation_config)
    pairs = signature_pairs("valid", valid, settings, precision_name(adapted.dtype))
    checks = caption_checks if recipe.scst.loss == "scst" else None
    scores = CaptionMetrics(adapted.processor.tokenizer, valid["caption"], pairs, checks)
    trainer = make_trainer(recipe, data, captions, adapted, scores, cache, write_sample_sheet)
    if destination is not None:
        gather, ids = trainer.gathered_weights, valid["image_id"]
        pushes = EpochReleaseCallback(run, destination, gather, save, scores, ids)
        trainer.add_callback(pushes)
    preemption = PreemptionCallback(trainer)
    for callback in (*callbacks, preemption):
        trainer.add_callback(callback)
    with preemption.handling_signals(), reader_errors():
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = trainer.monitor.seconds
    trainer.encoder.flush()
    weights = trainer.gathered_weights()
    if is_main:
        record_time(run, seconds)
        save(run, weights)
    return trainer, pushes


def dry_run(recipe: Recipe, adapted: AdaptedModel, checkpoint: str | None) -> None:
    """Train four steps on a few images in a temporary folder, and print the plan of the full run on stdout."""
    args, splits = recipe.training, load_splits(recipe)
    images = images_per_epoch(recipe, splits["train"])
    check_steps(args, images)
    schedule = Schedule.of(args, images)
    data, decoded = dry_run_data(recipe, splits, adapted.processor.tokenizer, schedule.batch)
    timer = StepTimer()
    with dry_run_recipe(recipe) as short:
        captions = tokenize_captions(recipe, data, adapted.family)
        trainer, _ = fit(short, data, captions, adapted, callbacks=[timer])
        disk = run_disk_space(args, Path(short.training.output_dir), schedule)
    disk.check()
    features = feature_disk_space(recipe, cached_images(recipe, splits), adapted.family, adapted.dtype)
    if features is not None and recipe.model.feature_cache != "auto":  # "auto" works without a cache on a full disk
        features.check()
    if args.process_index == 0:
        source = describe_sources(recipe.data.data_dir, recipe.data.data_format)
        (memory,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, MemoryReport))
        plan = {
            "dry run": f"no errors; its files were removed from {args.output_dir}",
            "start": f"from {checkpoint}" if checkpoint else "from scratch",
            "data": f"{len(splits['train']):,} training and {len(splits['valid']):,} validation images from "
            f"{source}; {decoded:,} were decoded as a sample, the run decodes all",
            **describe_plan(adapted.model, schedule, adapted.dtype),
            "memory": memory.outcome().removeprefix("memory: "),
            "disk": str(disk),
            "features": str(features or "not cached"),
            "augmentation": draw_views(recipe, data["train"].select(range(len(data["train"]) // 2))),
            "time": timer.timing(len(data["valid"]), recipe.data.views).describe(schedule, len(splits["valid"])),
            "caption": f"{first_caption(trainer)!r}, from the weights of the dry run",
        }
        print("\n".join(f"{name}: {text}" for name, text in plan.items()))


def draw_views(recipe: Recipe, rows: Dataset) -> str:
    """Write augmentation.png, views of a few training images, to output_dir; return what it shows, or "none"."""
    augmentation = recipe_augmentation(recipe)
    if augmentation is None:
        return "none"
    path = Path(recipe.training.output_dir) / "augmentation.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_augmentation_sheet(path, rows, augmentation)
    count = f"{augmentation.views} views of an image" if augmentation.views else "a new view in every epoch"
    return f"{augmentation.strength}, {count}; examples are in {path}"


def only_pushes_are_missing(recipe: Recipe) -> bool:
    """Return whether the run is trained and may have been killed during its pushes."""
    args = recipe.training
    is_new_training = args.resume_from_checkpoint is not None or args.dry_run
    return args.push_to_hub and not is_new_training and is_finished(Path(args.output_dir))


def complete_pushes(recipe: Recipe) -> None:
    """Push the releases of a trained run that the Hub lacks."""
    run = Path(recipe.training.output_dir)
    refuse_changes(recipe, recipe_changes(run / "recipe.yaml", recipe))
    destination = push_destination(recipe)
    if destination is not None and recipe.training.process_index == 0:
        logger.warning("%s is trained; pushing the releases that the Hub lacks", run)
        remove_leftovers(run)
        print(push_run(run, run_release(run, destination), destination))


def first_caption(trainer: CaptionTrainer) -> str:
    """Return the first caption of the last evaluation; "" without one."""
    assert isinstance(trainer.scores, CaptionMetrics)
    return trainer.scores.predictions[0] if trainer.scores.predictions else ""


def describe_best(trainer: CaptionTrainer, result: str = "adapter") -> str:
    """Describe which checkpoint the adapter or model (`result`) is from, and its metric."""
    best, metric = trainer.best_loaded, trainer.args.metric_for_best_model
    if best is None:
        return f"the {result} of the last step, {trainer.state.global_step}"
    value = trainer.state.best_metric
    return f"the {result} of {best.name}, best {metric}" + (f" ({value:.4f})" if value is not None else "")


if __name__ == "__main__":
    main()
