"""`training.html` and `curves.png` of a run: curves, samples by epoch, throughput, memory, and what was dropped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments

from medcap.data.selection import REASONS
from medcap.io import write_text
from medcap.recipe import read_yaml
from medcap.reporting.evaluation_page import marked
from medcap.reporting.pages import data_url, render, thumbnail
from medcap.reporting.plots import plot_training, read_curve, write_png
from medcap.reporting.tables import TITLES
from medcap.training.callbacks import read_samples
from medcap.training.run_folder import read_environment

SECONDS = 30.0  # between two writes; the last one is at the end
DROPPED = {
    "blank": "blank captions",
    "license": "by license",
    "outside_fraction": "outside the fraction",
    "missing": "images missing",
    "undecodable": "images unreadable",
    "leaked_image": "images in a later split",
    "leaked_group": "articles or patients in a later split",
    "duplicate": "near-duplicates",
}
assert set(DROPPED) == set(REASONS)


class TrainingPage(TrainerCallback):
    """Writes the page after an evaluation, if the last time was `SECONDS` ago, and at the end of training.

    Args:
        run: Folder of the run.
        valid: Validation images, which contain those of `samples/`.
    """

    def __init__(self, run: Path, valid: Dataset) -> None:
        self.run, self.valid, self.written = run, valid, time.monotonic()
        self.images: dict[str, str] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page of a run that takes long."""
        if time.monotonic() - self.written >= SECONDS:
            self._write(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        if not self.images and (samples := read_samples(self.run)):
            wanted = {image_id for image_id, _, _ in next(iter(samples.values()))}
            rows = [row for row, image_id in enumerate(self.valid["image_id"][:]) if image_id in wanted]
            self.images = {self.valid[row]["image_id"]: thumbnail(self.valid[row]["image"]) for row in rows}
        best = state.best_global_step if state.best_metric is not None else None
        write_training_page(self.run, state.log_history, self.images, best)
        self.written = time.monotonic()


def write_training_page(
    run: Path, log: Sequence[Mapping[str, Any]], images: Mapping[str, str], best: int | None = None
) -> None:
    """Write curves.png and training.html into the folder of a run.

    Args:
        run: Folder of the run, with recipe.yaml, environment.json, metrics.jsonl and samples/ as far as they exist.
        log: Lines of the Trainer's log.
        images: Data URLs of the sample images by id.
        best: Step of the best evaluation.
    """
    figure = plot_training(log)
    if figure is not None:
        write_png(run / "curves.png", figure)
    environment = read_environment(run)
    splits = environment.get("data", {})
    text = render(
        "training_page.html",
        name=run.resolve().name,
        recipe=read_yaml(run / "recipe.yaml"),
        environment=environment,
        evaluations=read_curve(run / "metrics.jsonl"),
        titles=TITLES,
        best=best,
        curves=None if figure is None else data_url((run / "curves.png").read_bytes(), "png"),
        dropped={key: title for key, title in DROPPED.items() if any(part.get(key) for part in splits.values())},
        samples=_samples(run, images),
    )
    write_text(run / "training.html", text)


def _samples(run: Path, images: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each sample image with its reference and its predictions by epoch, different words marked."""
    cards: dict[str, dict[str, Any]] = {}
    for epoch, rows in read_samples(run).items():
        for image_id, reference, prediction in rows:
            known = {"image_id": image_id, "source": images.get(image_id), "reference": reference}
            card = cards.setdefault(image_id, {**known, "predictions": {}})
            card["predictions"][epoch] = marked(reference, prediction)[1]
    return list(cards.values())
