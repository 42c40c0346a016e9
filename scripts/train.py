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
import functools
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from medcap.logs import configure_logging, report_errors

configure_logging()  # before the libraries that have something to say on import

import torch
from datasets import DatasetDict
from peft import PeftModel
from transformers import BlipProcessor, GenerationConfig, TrainerCallback, set_seed

from medcap.evaluation.scoring import signature_pairs
from medcap.metrics.coco import Meteor
from medcap.modeling.precision import precision_name
from medcap.publish.epoch_releases import EpochReleaseCallback, push_run, run_release
from medcap.publish.hub_client import Destination, push_destination
from medcap.recipe import Recipe, read_recipe
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.dry_run import Clock, check_reporters, few_images, rehearsal
from medcap.training.memory import MemoryReport
from medcap.training.plan import Schedule, features_room, plan, run_room
from medcap.training.preemption import PreemptionCallback
from medcap.training.reader_errors import reader_errors
from medcap.training.resume import checkpoint_to_resume, is_finished, recipe_changes, refuse_changes
from medcap.training.run_folder import record_time, remove_leftovers, save_adapter, start_run
from medcap.training.setup import (
    announce,
    check_devices,
    checked_data,
    make_model,
    make_trainer,
    open_features,
    resolve_precision,
    wanted_data,
)
from medcap.training.trainer import CaptionTrainer

logger = logging.getLogger(__name__)


def main(words: list[str] | None = None) -> None:
    """Read the command line and train; ends with status 2 for a wrong recipe, 1 for failed work."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `medcap train` ignores it, while it waits
    with report_errors(debug):
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
    dtype = resolve_precision(recipe)
    adapted, processor, generation_config = make_model(recipe, dtype)
    if recipe.training.dry_run:
        dry_run(recipe, adapted, processor, generation_config, dtype, checkpoint)
        return
    data = checked_data(recipe)  # after the model: a wrong size or target is said before every image is decoded
    if recipe.training.process_index == 0:
        announce(recipe, data, adapted, processor)
    trainer, pushes = fit(recipe, data, adapted, processor, generation_config, dtype, checkpoint, to)
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
    generation_config: GenerationConfig,
    dtype: torch.dtype,
    checkpoint: str | None = None,
    to: Destination | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[CaptionTrainer, EpochReleaseCallback | None]:
    """Write the run's folder: epochs, from `checkpoint` on where there is one, and the adapter; pushed to `to`."""
    run, pushes, is_main = Path(recipe.training.output_dir), None, recipe.training.process_index == 0
    if is_main:
        start_run(recipe, data, precision_name(dtype), adapted, checkpoint)
    cache = open_features(recipe, data, adapted, processor, dtype)
    with Meteor() if is_main else contextlib.nullcontext() as meteor:  # one process scores
        pairs = signature_pairs("valid", data["valid"], generation_config, dtype)
        scores = CaptionMetrics(processor.tokenizer, data["valid"]["caption"], recipe.data.prompt, meteor, pairs)
        trainer = make_trainer(recipe, data, adapted, processor, generation_config, scores, cache)
        if to is not None:
            save = functools.partial(
                save_adapter, model=adapted, processor=processor, generation_config=generation_config, recipe=recipe
            )
            pushes = EpochReleaseCallback(run, to, save, scores, data["valid"]["image_id"])
            trainer.add_callback(pushes)
        for callback in callbacks:
            trainer.add_callback(callback)
        signals = PreemptionCallback(trainer)
        trainer.add_callback(signals)
        with signals.handling_signals(), reader_errors():
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds = trainer.health.seconds
        trainer.encoder.flush()
    if trainer.is_world_process_zero():
        record_time(run, seconds)
        save_adapter(run / "adapter", adapted, processor, generation_config, recipe)
    return trainer, pushes


def dry_run(
    recipe: Recipe,
    adapted: PeftModel,
    processor: BlipProcessor,
    generation_config: GenerationConfig,
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
        trainer, _ = fit(small, few, adapted, processor, generation_config, dtype, callbacks=[clock])
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


def first_caption(trainer: CaptionTrainer) -> str:
    """The first caption of the last evaluation; "" where none was made."""
    assert isinstance(trainer.scores, CaptionMetrics)
    return trainer.scores.predictions[0] if trainer.scores.predictions else ""


def best_epoch(trainer: CaptionTrainer) -> str:
    """In words: which epoch the adapter is from, and why."""
    best, metric = trainer.state.best_model_checkpoint, trainer.args.metric_for_best_model
    if best is None or trainer.state.best_metric is None:
        return "the last step"
    return f"{Path(best).name}, the best by {metric} ({trainer.state.best_metric:.4f})"


if __name__ == "__main__":
    main()
