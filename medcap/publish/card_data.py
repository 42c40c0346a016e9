"""What a release says of itself: the measured facts of a run, and nothing that was not measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ROCOV2 = "eltorio/ROCOv2-radiology"  # the mirror on the Hub


@dataclass(frozen=True)
class CardData:
    """All that a card says. None, or an empty list, stands for what was not measured or is not known.

    `curve` is the lines of metrics.jsonl, `evaluation` a metrics.json, `comparison` a comparison.json, `energy` what
    codecarbon counted. `repo_id` is the name that the release gets on the Hub, if that is known already; `plots` the
    pictures that lie beside the card. `format`: what is released, an adapter or a whole model.
    """

    base: str
    base_is_local: bool
    base_image_size: int | None
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any] | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None
    energy: Mapping[str, float] | None = None
    repo_id: str | None = None
    plots: Sequence[str] = ()
    format: Literal["adapter", "merged", "onnx"] = "adapter"

    @property
    def name(self) -> str:
        """What the release is called."""
        if self.repo_id is not None:
            return self.repo_id.split("/")[-1]
        return f"{last_part(self.base)}-{'lora' if self.format == 'adapter' else self.format}-{last_part(self.data)}"

    @property
    def data(self) -> str:
        """The data set: a name on the Hub or of a folder."""
        return str(self.recipe["data_dir"])

    @property
    def is_phantom(self) -> bool:
        """Whether the images were drawn by medcap: only there is the truth of every image known."""
        return "phantom" in last_part(self.data).lower() or "findings" in (self.evaluation or {})

    @property
    def is_rocov2(self) -> bool:
        """Whether the data are ROCOv2, by the name of the folder or of the mirror on the Hub."""
        return "rocov2" in last_part(self.data).lower() and not self.is_phantom

    @property
    def interpolates(self) -> bool:
        """Whether the positions must be interpolated at every call: a merged model has those of its own size."""
        size = self.recipe.get("image_size")
        return self.format == "adapter" and size is not None and size != self.base_image_size

    @property
    def systems(self) -> list[dict[str, Any]]:
        """The rows of the results, `ours` marked: those of the comparison, else this adapter and its baselines."""
        ours = self.evaluation or {}
        rows = [ours] if ours else []
        rows += [{"name": name, **row} for name, row in ours.get("baselines", {}).items()]
        rows = rows if self.comparison is None else self.comparison["systems"]
        return [{**row, "ours": is_row_of(row, ours)} for row in rows]


def is_row_of(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
    """Whether a row of a comparison is this evaluation's, by name and scores."""
    return all(row[key] == evaluation.get(key) for key in ("name", "metrics"))


def last_part(path: str) -> str:
    """Return the last part of a path or of a name on the Hub."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
