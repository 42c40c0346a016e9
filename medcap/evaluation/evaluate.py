"""Evaluation of one captioner on one split: captions, scores, baselines and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medcap.data.detokenize import detokenize
from medcap.data.selection import drop_counts
from medcap.environment import environment
from medcap.evaluation.baselines import constant_caption, shuffled
from medcap.evaluation.predict import Baseline, Predictions, predict
from medcap.evaluation.predictions import write_predictions
from medcap.evaluation.result import EvaluationResult, SystemScores
from medcap.evaluation.scores_file import write_scores
from medcap.evaluation.scoring import (
    breakdown,
    score,
    score_concepts,
    score_shuffled,
    system_scores,
)
from medcap.evaluation.split import Split
from medcap.inference import Captioner
from medcap.metrics.clinical.accuracy import score_facts
from medcap.metrics.clinical.errors import find_failures
from medcap.metrics.coco import Meteor, Scores
from medcap.metrics.diversity import CaptionSummary, describe_captions


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: the result, and n captions with n scores by metric, in the order of the split."""

    result: EvaluationResult
    captions: list[str]
    per_image: dict[str, list[float]]


def evaluate(
    captioner: Captioner,
    split: Split,
    out: Path,
    *,
    name: str,
    batch_size: int | None = None,
    baselines: bool = True,
    nearest: int = 2000,
) -> Evaluation:
    """Caption and score `split`; write metrics.json, predictions.csv and scores.csv into `out`.

    Predictions are written before anything is scored. Those of a baseline are in out/baselines/NAME.

    Args:
        captioner: Base or adapter.
        split: Images and references.
        out: Folder, created if it does not exist.
        name: Name of the system in tables.
        batch_size: Images at a time; None for the captioner's default.
        baselines: Whether to score the baselines too.
        nearest: Number of training images searched by the baseline "nearest"; 0 leaves it out.
    """
    with Meteor() as meteor:  # loads while captions are generated
        predictions = predict(captioner, split, out, batch_size=batch_size, nearest=nearest if baselines else 0)
        return _score(predictions, split, out, meteor, name, baselines)


def _score(
    predictions: Predictions, split: Split, out: Path, meteor: Meteor, name: str, with_baselines: bool
) -> Evaluation:
    captions, cut = predictions.captions, predictions.cut
    scores = score(captions, split, meteor, predictions.signature_pairs)
    baselines = _baselines(predictions, split) if with_baselines else {}
    rows = {kind: _score_baseline(out, kind, baseline, split, meteor) for kind, baseline in baselines.items()}
    # captions depend on their own image alone: captioning shuffled images is shuffling the captions
    control = score_shuffled(shuffled(captions), split, scores, meteor) if len(captions) > 1 else None
    detokenized = None if predictions.detokenized else _score_detokenized(captions, split, meteor)
    write_scores(out / "scores.csv", split.ids, split.groups, scores.statistics)
    row = replace(
        system_scores(name, captions, split, scores),
        signature=scores.signature,
        facts=score_facts(captions, split.references),
        captions=_summary(captions, cut, scores),
    )
    result = EvaluationResult(
        **vars(row),
        model=predictions.model,
        base=predictions.base,
        split=split.name,
        data=drop_counts(split.rows),
        image_size=predictions.image_size,
        concepts=score_concepts(captions, split),
        failures=find_failures(captions, split.references, scores.per_image["cider"]),
        breakdown=breakdown(split, scores.statistics),
        baselines=rows,
        shuffled_images=control,
        detokenized=detokenized,
        recipe=predictions.recipe,
        environment=environment(),
    )
    result.write(out / "metrics.json")
    return Evaluation(result, captions, scores.per_image)


def _baselines(predictions: Predictions, split: Split) -> dict[str, Baseline]:
    """Return the captions of each baseline; constant and nearest use the training split, shuffled the references."""
    rows: dict[str, Baseline] = {}
    if split.training_captions:
        constant = constant_caption(split.training_captions)
        rows["constant"] = Baseline([constant] * len(split.rows), caption=constant)
    if len(split.rows) > 1:
        rows["shuffled"] = Baseline(shuffled(split.references))
    if predictions.nearest is not None:
        rows["nearest"] = predictions.nearest
    return rows


def _score_baseline(out: Path, name: str, baseline: Baseline, split: Split, meteor: Meteor) -> SystemScores:
    """Score a baseline, and write its predictions and scores like those of a system."""
    scores = score(baseline.captions, split, meteor)
    folder = out / "baselines" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", dict(zip(split.ids, baseline.captions, strict=True)))
    write_scores(folder / "scores.csv", split.ids, split.groups, scores.statistics)
    row = system_scores(name, baseline.captions, split, scores)
    return replace(row, caption=baseline.caption, training_images=baseline.training_images)


def _score_detokenized(captions: Sequence[str], split: Split, meteor: Meteor) -> SystemScores:
    texts = [detokenize(caption) for caption in captions]
    return system_scores("detokenized", texts, split, score(texts, split, meteor))


def _summary(captions: Sequence[str], cut: Sequence[bool], scores: Scores) -> CaptionSummary:
    return replace(
        describe_captions(captions),
        length_ratio=scores.statistics.length_ratio,
        brevity_penalty=scores.statistics.brevity_penalty,
        cut_fraction=sum(cut) / len(cut),
    )
