"""The content of a model card: the measured results and settings of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medcap.evaluation.result import Comparison, EvaluationResult, SystemScores

ROCOV2 = "eltorio/ROCOv2-radiology"  # the mirror on the Hub


@dataclass(frozen=True)
class SystemRow:
    """A row of the results tables; `is_ours` marks the released adapter."""

    scores: SystemScores
    is_ours: bool


@dataclass(frozen=True)
class CardData:
    """Everything that a card shows. None or an empty sequence means: not measured or not known.

    Attributes:
        base: Name of the base on the Hub, or of its folder if `base_is_local`.
        base_image_size: Image size of the base's position embeddings, in pixels per side.
        recipe: The resolved recipe, without paths of this machine.
        environment: Content of environment.json.
        curve: Lines of metrics.jsonl.
        energy: Sums of duration (s), energy_consumed (kWh) and emissions (kg) from codecarbon.
        repo_id: Name of the release on the Hub, if already known.
        plots: File names of the plots in the release.
        format: Format of the release.
    """

    base: str
    base_is_local: bool
    base_image_size: int | None
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any] | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    evaluation: EvaluationResult | None = None
    comparison: Comparison | None = None
    energy: Mapping[str, float] | None = None
    repo_id: str | None = None
    plots: Sequence[str] = ()
    format: Literal["adapter", "merged", "onnx"] = "adapter"

    @property
    def name(self) -> str:
        """The name of the release."""
        if self.repo_id is not None:
            return self.repo_id.split("/")[-1]
        kind = "lora" if self.format == "adapter" else self.format
        return f"{last_part(self.base)}-{kind}-{last_part(self.data)}"

    @property
    def data(self) -> str:
        """The data set: Hub name or folder name."""
        return str(self.recipe["data_dir"])

    @property
    def is_phantom(self) -> bool:
        """Whether the images are synthetic."""
        has_truth = self.evaluation is not None and self.evaluation.findings is not None
        return "phantom" in last_part(self.data).lower() or has_truth

    @property
    def is_rocov2(self) -> bool:
        """Whether the data set is ROCOv2, by its name."""
        return "rocov2" in last_part(self.data).lower() and not self.is_phantom

    @property
    def interpolates(self) -> bool:
        """Whether inference must interpolate position embeddings; those of a merged model have been resized."""
        size = self.recipe.get("image_size")
        return self.format == "adapter" and size is not None and size != self.base_image_size

    @property
    def systems(self) -> list[SystemRow]:
        """The rows of the results tables."""
        return system_rows(self.evaluation, self.comparison)


def system_rows(evaluation: EvaluationResult | None, comparison: Comparison | None) -> list[SystemRow]:
    """Return the systems of the comparison, or without one the evaluated system and its baselines."""
    if comparison is not None:
        rows = comparison.systems
    else:
        rows = [] if evaluation is None else [evaluation, *evaluation.baselines.values()]
    ours = (evaluation.name, evaluation.metrics) if evaluation else None
    return [SystemRow(row, (row.name, row.metrics) == ours) for row in rows]


def last_part(path: str) -> str:
    """Return the last part of a path or of a Hub name."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
