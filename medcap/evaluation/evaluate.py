"""Evaluation of one captioner on one split: captions, scores, baselines beside them, and a page to look at."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcap.data.detokenize import detokenize
from medcap.data.selection import drop_counts
from medcap.environment import environment
from medcap.evaluation.baselines import constant_caption, shuffled
from medcap.evaluation.nearest import nearest_captions
from medcap.evaluation.predictions import write_predictions
from medcap.evaluation.scores_file import write_scores
from medcap.evaluation.scoring import breakdown, factual_accuracy, image_dependence, score_split, signature_pairs
from medcap.evaluation.split import Split
from medcap.inference import Captioner, adapter_recipe, caption_dataset
from medcap.io import write_json
from medcap.metrics.clinical.errors import failures
from medcap.metrics.coco import Meteor, Scores
from medcap.metrics.diversity import describe_captions, sameness
from medcap.reporting.evaluation_page import write_page

logger = logging.getLogger(__name__)

# what may differ between two runs of one recipe: where they lie, and the seed
_NOT_RECIPE = {"seed", "data_seed", "output_dir", "run_name", "resume_from_checkpoint", "hub_model_id", "data_dir"}


def evaluate(
    captioner: Captioner,
    split: Split,
    out: Path,
    *,
    name: str,
    batch_size: int | None = None,
    baselines: bool = True,
    nearest: int = 2000,
) -> tuple[dict[str, Any], list[str]]:
    """Caption and score `split`; writes metrics.json, predictions.csv, scores.csv and report.html into `out`.

    `nearest`: of how many training images the nearest one is looked for; 0 leaves that baseline out. Each baseline's
    predictions and scores lie in out/baselines/NAME. Predictions are written before anything is scored.
    Returns the content of metrics.json and the captions, in the order of the split.
    """
    with Meteor() as meteor:  # it gets ready while captions are made
        captions, cut = caption_dataset(captioner, split.rows, batch_size=batch_size)
        if same := sameness(captions):
            logger.warning(same)
        out.mkdir(parents=True, exist_ok=True)
        write_predictions(out / "predictions.csv", dict(zip(split.ids, captions, strict=True)))
        extra = _pairs(captioner, split)
        scored, scores = score_split(captions, split, meteor, extra)
        made = _baseline_captions(captioner, split, nearest, batch_size or 16) if baselines else {}
        rows = {kind: _baseline(out, kind, row, split, meteor) for kind, row in made.items()}
        pictures = _wrong_pictures(captions, split, meteor, scores)
        restored = {} if captioner.detokenize else _restored(captions, split, meteor)
    write_scores(out / "scores.csv", split.ids, split.groups, scores.statistics)
    result = {
        "name": name,
        "model": captioner.adapter or captioner.base,
        "base": captioner.base,
        "split": split.name,
        "data": drop_counts(split.rows),
        "image_size": captioner.image_size,
        **scored,
        "captions": {**describe_captions(captions), **_lengths(scores), "cut_fraction": sum(cut) / len(cut)},
        **factual_accuracy(captions, split),
        "failures": failures(captions, split.references, scores.per_image["cider"]),
        "breakdown": breakdown(split, scores.statistics),
        "baselines": rows,
        **pictures,
        **restored,
        "recipe": _recipe(captioner),
        "environment": environment(),
    }
    write_json(out / "metrics.json", result)
    write_page(out / "report.html", result, split.rows, captions, scores.per_image)
    return result, captions


def _pairs(captioner: Captioner, split: Split) -> dict[str, object]:
    return signature_pairs(
        split.name, split.rows, captioner.generation_config, captioner.model.dtype, captioner.detokenize
    )


def _baseline_captions(captioner: Captioner, split: Split, nearest: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """The captions of what needs no training: constant and nearest know train alone, shuffled the references."""
    rows: dict[str, dict[str, Any]] = {}
    if split.training_captions:
        constant = constant_caption(split.training_captions)
        rows["constant"] = {"caption": constant, "captions": [constant] * len(split.rows)}
    if len(split.rows) > 1:
        rows["shuffled"] = {"captions": shuffled(split.references)}
    if nearest and split.training is not None:
        captions, of = nearest_captions(captioner, split.rows, split.training, most=nearest, batch_size=batch_size)
        rows["nearest"] = {"of": of, "captions": captions}
    return rows


def _baseline(out: Path, name: str, row: Mapping[str, Any], split: Split, meteor: Meteor) -> dict[str, Any]:
    """Score a baseline, and write its predictions and scores as those of a system."""
    scored, scores = score_split(row["captions"], split, meteor)
    folder = out / "baselines" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", dict(zip(split.ids, row["captions"], strict=True)))
    write_scores(folder / "scores.csv", split.ids, split.groups, scores.statistics)
    return {**{key: value for key, value in row.items() if key != "captions"}, **_unsigned(scored)}


def _unsigned(scored: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a row without its signature, which would be the system's but for the decoding."""
    return {key: value for key, value in scored.items() if key != "signature"}


def _wrong_pictures(captions: Sequence[str], split: Split, meteor: Meteor, right: Scores) -> dict[str, Any]:
    """Score every caption against another image: what is left is what the model says without looking.

    A caption depends on its picture alone, so captioning shuffled pictures is shuffling the captions.
    """
    if len(captions) < 2:
        return {}
    scored, wrong = score_split(shuffled(captions), split, meteor)
    return {"wrong_pictures": {**_unsigned(scored), **image_dependence(right, wrong, split.groups)}}


def _restored(captions: Sequence[str], split: Split, meteor: Meteor) -> dict[str, Any]:
    scored, _ = score_split([detokenize(caption) for caption in captions], split, meteor)
    return {"restored": _unsigned(scored)}


def _lengths(scores: Scores) -> dict[str, float]:
    """How long the captions are beside their references, in tokens, and BLEU's penalty for being too short."""
    ratio = scores.statistics.length_ratio
    return {"length_ratio": ratio, "brevity_penalty": scores.statistics.brevity_penalty}


def _recipe(captioner: Captioner) -> dict[str, Any] | None:
    """Seed, and a hash of all else that the adapter's recipe says: runs of one hash differ in the seed alone."""
    recipe = adapter_recipe(captioner.adapter) if captioner.adapter else {}
    if not recipe:
        return None
    rest = json.dumps({key: value for key, value in recipe.items() if key not in _NOT_RECIPE}, sort_keys=True)
    return {"hash": hashlib.sha256(rest.encode()).hexdigest()[:16], "seed": recipe.get("seed")}
