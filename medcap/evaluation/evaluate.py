"""Evaluation of one captioner on one split: captions, scores, baselines and controls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from medcap.data.detokenize import detokenize
from medcap.data.selection import drop_counts
from medcap.environment import environment
from medcap.evaluation.baselines import LEGEND, constant_captions, shuffled
from medcap.evaluation.csv_files import write_predictions, write_scores
from medcap.evaluation.predict import Baseline, Predictions, predict
from medcap.evaluation.result import EvaluationResult, PairedDifference, SystemScores
from medcap.evaluation.scoring import breakdown, score, score_concepts, score_shuffled
from medcap.evaluation.split import Split, concept_modalities
from medcap.evaluation.verdict import paired_differences
from medcap.inference import Captioner
from medcap.metrics.clinical.accuracy import score_facts
from medcap.metrics.clinical.concept_terms import concept_terms
from medcap.metrics.clinical.errors import find_failures
from medcap.metrics.coco import Scores
from medcap.metrics.diversity import describe_captions


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, and n captions with n scores by metric, in the order of the split."""

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

    Predictions are written before they are scored. The files of a baseline are in `out`/baselines/NAME.

    Args:
        captioner: Base or adapter.
        split: Images and references.
        out: Folder, created if it does not exist.
        name: Name of the system in tables.
        batch_size: Images at a time; None for the default of `caption_dataset`.
        baselines: Whether to score the baselines too.
        nearest: Number of training images searched by the baselines "nearest" and "nearest-k"; 0 omits them.
    """
    predictions = predict(captioner, split, out, batch_size=batch_size, nearest=nearest if baselines else 0)
    return _score(predictions, split, out, name, baselines)


def _score(predictions: Predictions, split: Split, out: Path, name: str, with_baselines: bool) -> Evaluation:
    captions, terms = predictions.captions, concept_terms(split.concepts)
    row, scores = score(name, captions, split, predictions.signature_pairs)
    baselines = _baselines(predictions, split) if with_baselines else {}
    rows: dict[str, SystemScores] = {}
    tests: list[PairedDifference] = []
    for kind, baseline in baselines.items():
        rows[kind], other = _score_baseline(out, kind, baseline, split)
        tests += paired_differences((name, kind), (scores.statistics, other.statistics), split.groups)
    detokenized = None
    if not predictions.detokenized:
        detokenized, _ = score("detokenized", [detokenize(caption) for caption in captions], split)
    write_scores(out / "scores.csv", split.ids, split.groups, scores.statistics)
    row = replace(
        row,
        signature=scores.signature,
        facts=score_facts(captions, split.references, terms),
        captions=replace(
            describe_captions(captions),
            length_ratio=scores.statistics.length_ratio,
            brevity_penalty=scores.statistics.brevity_penalty,
            cut_fraction=sum(predictions.cut) / len(captions),
        ),
    )
    result = EvaluationResult(
        **vars(row),
        model=predictions.model,
        base=predictions.base,
        split=split.name,
        data=drop_counts(split.rows),
        image_size=predictions.image_size,
        concepts=score_concepts(captions, split),
        failures=find_failures(captions, split.references, scores.per_image["cider"], terms),
        breakdown=breakdown(split, scores.statistics),
        baselines=rows,
        omitted=_omitted(split, rows) if with_baselines else {},
        tests=tests,
        shuffled_images=score_shuffled(captions, split, scores),
        detokenized=detokenized,
        recipe=predictions.recipe,
        environment=environment(),
    )
    result.write(out / "metrics.json")
    return Evaluation(result, captions, scores.per_image)


def _baselines(predictions: Predictions, split: Split) -> dict[str, Baseline]:
    """Return the captions of each baseline that the data allows, in the order of `LEGEND`."""
    rows = dict(predictions.nearest)
    if (training := split.training_captions) is not None:
        modalities = concept_modalities(split.rows)
        constants = constant_captions(training["caption"][:], training["group"][:], concept_modalities(training))
        rows["constant"] = Baseline([constants[None]] * len(split.rows), caption=constants[None])
        if any(modality in constants for modality in modalities if modality):
            by_modality = [constants.get(modality, constants[None]) for modality in modalities]
            rows["constant-modality"] = Baseline(by_modality)
    if len(split.rows) > 1:
        rows["shuffled"] = Baseline(shuffled(split.references, split.groups))
    return {name: rows[name] for name in LEGEND if name in rows}


def _omitted(split: Split, rows: Collection[str]) -> dict[str, str]:
    """Return why each other baseline was not scored."""
    reasons = dict.fromkeys(LEGEND, "no training images were searched")
    reasons |= {
        "constant": "the data has no training split",
        "constant-modality": "no concept of the data names the modality of an image",
        "shuffled": "there is only one image",
    }
    return {name: reason for name, reason in reasons.items() if name not in rows}


def _score_baseline(out: Path, name: str, baseline: Baseline, split: Split) -> tuple[SystemScores, Scores]:
    """Score a baseline, and write the same CSV files as for a system."""
    row, scores = score(name, baseline.captions, split)
    folder = out / "baselines" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", dict(zip(split.ids, baseline.captions, strict=True)))
    write_scores(folder / "scores.csv", split.ids, split.groups, scores.statistics)
    return replace(row, caption=baseline.caption, training_images=baseline.training_images), scores
