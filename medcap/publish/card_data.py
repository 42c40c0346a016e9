"""The content of a model card: the measured results and settings of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import PreTrainedConfig

from medcap.data.sources import source_paths
from medcap.evaluation.result import Comparison, EvaluationResult, SystemScores
from medcap.modeling.families import FAMILIES, Family

ROCOV2 = "eltorio/ROCOv2-radiology"  # the mirror on the Hub


@dataclass(frozen=True)
class SystemRow:
    """A row of the results tables; `is_ours` marks the release, an adapter or a model (`kind`)."""

    scores: SystemScores
    is_ours: bool
    kind: str = "adapter"


@dataclass(frozen=True)
class Example:
    """An image of a release, with its captions, source and SHA-256."""

    file: str
    image_id: str
    reference: str
    caption: str
    attribution: str
    link: str
    sha256: str


@dataclass(frozen=True)
class CardData:
    """Everything that a card shows. None or an empty sequence means: not measured or not known.

    Attributes:
        base: Name of the base on the Hub, or of its folder if `base_is_local`.
        base_kind: Of the base, a key of `FAMILIES`.
        recipe: The resolved recipe, without paths of this machine.
        environment: Content of environment.json.
        curve: Lines of metrics.jsonl.
        energy: Sums of duration (s), energy_consumed (kWh) and emissions (kg) from codecarbon.
        repo_id: Name of the release on the Hub, if already known.
        plots: File names of the plots in the release.
        examples: Example images of the release.
        format: Format of the release; "full" is a model whose own weights were trained.
        config: Config of the base, or of a merged or fully trained model, if it is on this machine.
        processor_size: Height and width in pixels to which the processor resizes images.
        layers: Trained layers by kind: their number and that of their trained parameters.
        has_chat_template: Whether the processor has one.
        tokenizer_adds_spaces: Whether decoding adds spaces, as in "x - ray".
        tokenizer_lowercases: Whether captions have no capitals.
        averaged: The adapters that were averaged: name and weight.
    """

    base: str
    base_is_local: bool
    base_kind: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any] | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    evaluation: EvaluationResult | None = None
    comparison: Comparison | None = None
    energy: Mapping[str, float] | None = None
    repo_id: str | None = None
    plots: Sequence[str] = ()
    examples: Sequence[Example] = ()
    format: Literal["adapter", "merged", "onnx", "full"] = "adapter"
    config: PreTrainedConfig | None = None
    processor_size: int | None = None
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    has_chat_template: bool = False
    tokenizer_adds_spaces: bool = False
    tokenizer_lowercases: bool = False
    averaged: Sequence[Mapping[str, Any]] = ()

    @property
    def family(self) -> type[Family]:
        """The family of the base."""
        return FAMILIES[self.base_kind]

    @property
    def model_class(self) -> str:
        """The class of transformers that loads the base."""
        return str(self.family.model_class.__name__)

    @property
    def dtype(self) -> str:
        """The dtype of the weights at inference; "auto" depends on the hardware, and float32 is always right."""
        return {"bf16": "bfloat16", "fp16": "float16"}.get(self.recipe.get("precision", ""), "float32")

    @property
    def image_size(self) -> int | None:
        """Height and width of images in pixels, as far as known."""
        return self.recipe.get("image_size") or self.processor_size

    @property
    def name(self) -> str:
        """The name of the release."""
        if self.repo_id is not None:
            return self.repo_id.split("/")[-1]
        kind = "lora" if self.format == "adapter" else self.format
        return f"{last_part(self.base)}-{kind}-{self.data_name}"

    @property
    def data(self) -> str:
        """The data set: Hub name or folder name; those of several sources."""
        return ", ".join(source_paths(self.recipe["data_dir"]))

    @property
    def data_name(self) -> str:
        """The data set without the namespaces of the Hub."""
        return "-and-".join(map(last_part, source_paths(self.recipe["data_dir"])))

    def _all_named(self, text: str) -> bool:
        return all(text in last_part(path).lower() for path in source_paths(self.recipe["data_dir"]))

    @property
    def is_phantom(self) -> bool:
        """Whether the images are synthetic."""
        has_truth = self.evaluation is not None and self.evaluation.findings is not None
        return self._all_named("phantom") or has_truth

    @property
    def is_rocov2(self) -> bool:
        """Whether the data set is ROCOv2, by its name."""
        return self._all_named("rocov2") and not self.is_phantom

    @property
    def interpolates(self) -> bool:
        """Whether inference must interpolate position embeddings; those of a merged BLIP have been resized."""
        size = self.recipe.get("image_size") if self.config is None else self.image_size
        return size is not None and self.family.interpolates(self.config, size)

    @property
    def systems(self) -> list[SystemRow]:
        """The rows of the results tables."""
        return [replace(row, kind=self.kind) for row in system_rows(self.evaluation, self.comparison)]

    @property
    def kind(self) -> str:
        """What was trained: "adapter" or "model"."""
        return "model" if self.format == "full" else "adapter"


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
