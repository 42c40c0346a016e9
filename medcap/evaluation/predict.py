"""The part of an evaluation that needs the model: captions, and the captions of the nearest training images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcap.evaluation.csv_files import write_predictions
from medcap.evaluation.nearest import nearest_captions
from medcap.evaluation.result import RecipeId
from medcap.evaluation.scoring import signature_pairs
from medcap.evaluation.split import Split
from medcap.inference import Captioner, caption_dataset
from medcap.metrics.diversity import sameness
from medcap.neighbors import with_consensus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """The n captions of a baseline: `caption` is the constant one, `training_images` the number searched."""

    captions: Sequence[str]
    caption: str | None = None
    training_images: int | None = None


@dataclass(frozen=True)
class Predictions:
    """The n captions of a split, and how they were generated.

    Attributes:
        captions: In the order of the split.
        cut: Whether `max_new_tokens` cut the caption.
        nearest: The baselines "nearest" and "nearest-k"; empty if they were left out.
        signature_pairs: Split, data, decoding, precision and detokenization, for the signature of the scores.
        model: The adapter, or the base if there is none: folder or Hub name.
        base: Folder or Hub name.
        image_size: Height and width in pixels; None if it depends on the image.
        detokenized: Whether the captions are detokenized.
        recipe: Identifies the recipe of the adapter.
    """

    captions: list[str]
    cut: list[bool]
    nearest: dict[str, Baseline]
    signature_pairs: dict[str, object]
    model: str
    base: str
    image_size: int | None
    detokenized: bool
    recipe: RecipeId | None


def predict(
    captioner: Captioner, split: Split, out: Path, *, batch_size: int | None = None, nearest: int = 0
) -> Predictions:
    """Caption `split` and write `out`/predictions.csv; find the nearest of `nearest` training images, 0 for none.

    All of the captioner's `processes` call this, but only the main one writes, and finds the nearest images.
    """
    precision, settings = captioner.precision, captioner.generation_config
    pairs = signature_pairs(split.name, split.rows, settings, precision, captioner.detokenize)
    recipe = RecipeId.of(captioner.recipe) if captioner.recipe else None
    captioner = with_consensus(captioner, split.training, batch_size)
    captions, cut = caption_dataset(captioner, split.rows, batch_size=batch_size)
    if warning := sameness(captions):
        logger.warning(warning)
    if captioner.writes:
        out.mkdir(parents=True, exist_ok=True)
        write_predictions(out / "predictions.csv", dict(zip(split.ids, captions, strict=True)))
    baselines = {}
    if nearest and split.training is not None:
        similar, n = nearest_captions(captioner, split.rows, split.training, most=nearest, batch_size=batch_size or 16)
        baselines = {name: Baseline(texts, training_images=n) for name, texts in similar.items()}
    return Predictions(
        captions,
        cut,
        baselines,
        pairs,
        model=captioner.adapter or captioner.base,
        base=captioner.base,
        image_size=captioner.image_size,
        detokenized=captioner.detokenize,
        recipe=recipe,
    )
