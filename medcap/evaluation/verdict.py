"""The rules that judge scores: significance, baselines, image dependence, laterality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medcap.evaluation.baselines import LEGEND
from medcap.evaluation.result import EvaluationResult, ImageDependence, PairedDifference
from medcap.metrics.statistics import Statistics, paired_test

SIGNIFICANT = 0.05  # p of a paired test
MIN_RELATIVE_DROP = 0.1  # of CIDEr when images are shuffled
MIN_IMAGES = 6  # images or groups: with n of them the smallest p of the test is 2 / 2^n, .06 for 5
FEW_WRONG_SIDES, MANY_WRONG_SIDES = 0.02, 0.1  # fraction of captions with one side
RULE = (
    "A score is above or below another if a paired test of the difference, by article or patient if the data names "
    "them and by image otherwise, has p below .05. Captions depend on the image if CIDEr drops significantly, and by "
    "a tenth or more, when images are shuffled. They do not depend on it if the 95 % interval of the drop ends below "
    f"a tenth of CIDEr. Otherwise, or with fewer than {MIN_IMAGES} images, articles or patients, there are too few "
    "images to tell."
)


@dataclass(frozen=True)
class Statement:
    """One sentence about a result, and its judgement."""

    judgement: Literal["good", "unsure", "bad"]
    text: str


def verdict(result: EvaluationResult, tests: Sequence[PairedDifference] | None = None) -> list[Statement]:
    """Return statements on baselines, image dependence and laterality, as far as these were measured.

    `tests` are those of a comparison with the result's system; None for those of the result.
    """
    differences = differences_of(result.name, result.tests if tests is None else tests)
    statements = [
        _against_baseline(result, test) for test in differences if test.metric == "cider" and test.second in LEGEND
    ]
    if result.shuffled_images is not None:
        statements.append(_on_image_dependence(result, result.shuffled_images))
    if result.facts is not None and result.facts.wrong_side is not None:
        statements.append(_on_sides(result.facts.wrong_side, result.facts.one_side))
    return statements


def paired_differences(
    names: tuple[str, str], systems: tuple[Statistics, Statistics], groups: Sequence[str | None]
) -> list[PairedDifference]:
    """Return the paired test of two systems by metric (see `paired_test`)."""
    return [
        PairedDifference(first=names[0], second=names[1], metric=metric, **test, significant=test["p"] < SIGNIFICANT)
        for metric, test in paired_test(*systems, groups).items()
    ]


def differences_of(name: str, tests: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the tests of one system as its score minus that of the other one."""
    return [
        test
        if test.first == name
        else replace(test, first=name, second=test.first, difference=-test.difference, low=-test.high, high=-test.low)
        for test in tests
        if name in (test.first, test.second)
    ]


def depends_on_image(cider: float, test: Mapping[str, float], groups: Sequence[str | None]) -> bool | None:
    """Return whether captions depend on the image by `RULE`; None for too few images to tell.

    Args:
        cider: CIDEr of the captions.
        test: Paired test of CIDEr on original against shuffled images: difference, p, low, high.
        groups: Article or patient of each image; an image of group None is a group of its own.
    """
    relevant = MIN_RELATIVE_DROP * cider
    if len(set(groups) - {None}) + groups.count(None) < MIN_IMAGES:
        return None
    if test["p"] < SIGNIFICANT and test["difference"] >= relevant:
        return True
    return False if test["high"] <= relevant else None


def _against_baseline(result: EvaluationResult, test: PairedDifference) -> Statement:
    cider = result.metrics["cider"]
    other = f"the baseline {test.second}, {cider - test.difference:.3f} (p = {test.p:.4f})"
    if not test.significant:
        return Statement("unsure", f"CIDEr {cider:.3f} is not significantly different from {other}.")
    if test.difference > 0:
        return Statement("good", f"CIDEr {cider:.3f} is above {other}.")
    return Statement("bad", f"CIDEr {cider:.3f} is below {other}.")


def _on_image_dependence(result: EvaluationResult, shuffled: ImageDependence) -> Statement:
    scores = f"CIDEr {result.metrics['cider']:.3f}, {shuffled.metrics['cider']:.3f} when images are shuffled"
    if shuffled.depends_on_image is None:
        return Statement(
            "unsure", f"There are too few images to tell whether the captions depend on the image: {scores}."
        )
    if shuffled.depends_on_image:
        return Statement("good", f"The captions depend on the image: {scores}.")
    return Statement("bad", f"The captions do not depend on the image: {scores}.")


def _on_sides(wrong: float, n: int) -> Statement:
    text = f"The side is wrong in {wrong:.1%} of the {n} captions where caption and reference name one side."
    return Statement("good" if wrong < FEW_WRONG_SIDES else "unsure" if wrong < MANY_WRONG_SIDES else "bad", text)
