"""The rules that judge scores: significance, image dependence, baselines, laterality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medcap.evaluation.result import EvaluationResult, ImageDependence, SystemScores

SIGNIFICANT = 0.05  # p of a paired test
MIN_RELATIVE_DROP = 0.1  # of CIDEr when images are shuffled
FEW_WRONG_SIDES, MANY_WRONG_SIDES = 0.02, 0.1  # fraction of captions with one side


@dataclass(frozen=True)
class Statement:
    """One sentence about a result, and its judgement."""

    judgement: Literal["good", "unsure", "bad"]
    text: str


def verdict(result: EvaluationResult) -> list[Statement]:
    """Return statements on baselines, image dependence and laterality, as far as these were measured."""
    statements = [_against_baseline(result, row) for row in result.baselines.values()]
    if result.shuffled_images is not None:
        statements.append(_on_image_dependence(result, result.shuffled_images))
    if result.facts is not None and result.facts.wrong_side is not None:
        statements.append(_on_sides(result.facts.wrong_side, result.facts.one_side))
    return statements


def depends_on_image(cider: float, test: Mapping[str, float]) -> bool:
    """Return whether CIDEr drops significantly, and by at least `MIN_RELATIVE_DROP`, when images are shuffled.

    `test` is the paired test of CIDEr on the original against shuffled images.
    """
    return test["p"] < SIGNIFICANT and test["difference"] >= MIN_RELATIVE_DROP * cider > 0


def _against_baseline(result: EvaluationResult, baseline: SystemScores) -> Statement:
    """Compare the 95 % intervals of CIDEr."""
    score, other = result.metrics["cider"], baseline.metrics["cider"]
    (low, high), (other_low, other_high) = result.intervals["cider"], baseline.intervals["cider"]
    if low > other_high:
        return Statement("good", f"CIDEr {score:.2f} is above the baseline {baseline.name}, {other:.2f}.")
    if high < other_low:
        return Statement("bad", f"CIDEr {score:.2f} is below the baseline {baseline.name}, {other:.2f}.")
    text = f"CIDEr {score:.2f} is not clearly above the baseline {baseline.name}, {other:.2f}"
    return Statement("unsure", f"{text}: the intervals overlap, see medcap compare for a test.")


def _on_image_dependence(result: EvaluationResult, shuffled: ImageDependence) -> Statement:
    scores = f"CIDEr {result.metrics['cider']:.2f}, shuffled {shuffled.metrics['cider']:.2f}"
    if shuffled.depends_on_image:
        return Statement("good", f"Scores drop when images are shuffled: {scores}.")
    return Statement("bad", f"Scores do not drop significantly when images are shuffled: {scores}.")


def _on_sides(wrong: float, n: int) -> Statement:
    text = f"The side is wrong in {wrong:.1%} of the {n} captions where caption and reference name one side."
    return Statement("good" if wrong < FEW_WRONG_SIDES else "unsure" if wrong < MANY_WRONG_SIDES else "bad", text)
