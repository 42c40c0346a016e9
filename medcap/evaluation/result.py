"""Typed results of an evaluation and of a comparison, read from and written as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from medcap.io import write_json
from medcap.metrics.clinical.accuracy import FactScores
from medcap.metrics.clinical.concept_f1 import ConceptScores
from medcap.metrics.clinical.errors import Failure
from medcap.metrics.diversity import CaptionSummary
from medcap.metrics.signature import Signature

T = TypeVar("T")
_SEEDS = {"seed", "data_seed"}
_PATHS = {"output_dir", "run_name", "resume_from_checkpoint", "hub_model_id", "data_dir"}


class _Json:
    """A dataclass that is read from and written as JSON; None has no key."""

    @classmethod
    def from_json(cls: type[T], content: Any) -> T:
        """Return the object of `to_json`; ValueError for a missing or unknown key."""
        return _parse_fields(cls, content)

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        """Read a JSON file; ValueError, with the path, for other content than that of `write`."""
        try:
            return _parse_fields(cls, json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {error}; write the file again with this version of medcap") from error

    def to_json(self) -> dict[str, Any]:
        """Return the content as plain dicts, lists, texts and numbers."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def write(self, path: Path) -> None:
        """Write a JSON file atomically."""
        write_json(path, self.to_json())


@dataclass(frozen=True, kw_only=True)
class SystemScores(_Json):
    """The scores of one set of captions, of an adapter, a base or a baseline.

    Attributes:
        n: Number of images.
        metrics: Corpus scores by metric.
        intervals: 95 % bootstrap interval (low, high) by metric.
        signature: How the scores were computed; None for a baseline.
        findings: Phantoms only: fraction of images, 0 to 1, whose caption states each fact correctly.
        caption: The caption of the baseline "constant".
        training_images: The number of training images searched by the baselines "nearest" and "nearest-k".
    """

    name: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    signature: Signature | None = None
    findings: dict[str, float] | None = None
    facts: FactScores | None = None
    captions: CaptionSummary | None = None
    caption: str | None = None
    training_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageDependence(SystemScores):
    """The image-shuffle control: the same captions, scored against the references of other images.

    Attributes:
        test: Paired test of original against shuffled images by metric (difference, p, low, high).
        depends_on_image: None for too few images to tell; see `evaluation.verdict`.
    """

    test: dict[str, dict[str, float]]
    depends_on_image: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """Scores of the n images with one value, such as one modality."""

    value: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class RecipeId:
    """Hash of a recipe without seeds and paths, and its seed: runs with one hash differ only in the seed."""

    hash: str
    seed: int | None = None

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> RecipeId:
        """Return the id of a recipe as {key: value}."""
        rest = {key: value for key, value in recipe.items() if key not in _SEEDS | _PATHS}
        text = json.dumps(rest, sort_keys=True)
        return cls(hash=hashlib.sha256(text.encode()).hexdigest()[:16], seed=recipe.get("seed"))


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(SystemScores):
    """metrics.json: one system on one split.

    Releases of single epochs have only name, split, n, metrics, signature and captions.

    Attributes:
        split: train, valid or test.
        model: The adapter, or the base if there is none: folder or Hub name.
        data: Number of rows read, dropped (by reason) and used.
        failures: Frequency and examples by kind of error.
        breakdown: Scores by "source", "modality" of the image and "length" of the reference.
        baselines: Scores by name, see `evaluation.baselines.LEGEND`.
        omitted: Why a baseline was not scored, by name.
        tests: Paired tests of this system against each baseline.
        detokenized: Scores after detokenization; None if the captions are detokenized already.
        imageclef: Metrics, signature and submission check of `--protocol imageclef`.
    """

    split: str
    model: str | None = None
    base: str | None = None
    image_size: int | None = None
    data: dict[str, Any] | None = None
    concepts: ConceptScores | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    breakdown: dict[str, list[PartScores]] = field(default_factory=dict)
    baselines: dict[str, SystemScores] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)
    tests: list[PairedDifference] = field(default_factory=list)
    shuffled_images: ImageDependence | None = None
    detokenized: SystemScores | None = None
    recipe: RecipeId | None = None
    environment: dict[str, Any] | None = None
    imageclef: dict[str, Any] | None = None

    @property
    def rows(self) -> list[SystemScores]:
        """This system, its baselines and its controls, in the order of the tables."""
        controls = (self.shuffled_images, self.detokenized)
        return [self, *self.baselines.values(), *(row for row in controls if row is not None)]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Score of `first` minus that of `second` on the same images, its 95 % interval, and the p of a paired test."""

    first: str
    second: str
    metric: str
    difference: float
    p: float
    low: float
    high: float
    significant: bool


@dataclass(frozen=True, kw_only=True)
class SeedPool:
    """Mean, standard deviation and n of each metric over runs that differ only in the seed."""

    systems: list[str]
    seeds: list[int | None]
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Comparison(_Json):
    """comparison.json: systems scored on the same images, and a test of each pair of systems by metric."""

    systems: list[SystemScores]
    tests: list[PairedDifference] = field(default_factory=list)
    seeds: list[SeedPool] = field(default_factory=list)


def _plain(value: Any) -> Any:
    if isinstance(value, Signature):
        return str(value)
    if is_dataclass(value):
        named = ((item.name, getattr(value, item.name)) for item in fields(value))
        return {name: _plain(inner) for name, inner in named if inner is not None}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _parse(kind: Any, value: Any) -> Any:
    """Convert JSON to an object of type `kind`; numbers, texts and `Any` are not converted."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # only X | None is used
        return None if value is None else _parse(arguments[0], value)
    if kind is Signature:
        return Signature.parse(value)
    if is_dataclass(kind):
        return _parse_fields(kind, value)
    if origin is dict:
        return {key: _parse(arguments[1], inner) for key, inner in value.items()}
    if origin in (list, tuple):
        return origin(_parse(arguments[0], inner) for inner in value)
    return value


def _parse_fields(kind: Any, value: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    if unknown := [key for key in value if key not in hints]:
        raise ValueError(f"unknown key {unknown[0]!r}, allowed: {', '.join(hints)}")
    try:
        return kind(**{key: _parse(hints[key], inner) for key, inner in value.items()})
    except TypeError as error:
        lacking = [item.name for item in fields(kind) if item.name not in value]
        raise ValueError(f"{kind.__name__} lacks one of the keys {', '.join(lacking)}") from error
