"""Read the files of a run into the data of its card, without paths of this machine."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PreTrainedConfig

from medcap.data.sources import source_paths
from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.io import read_json
from medcap.modeling.adapter import AVERAGE, image_size_of, trained_folder
from medcap.publish.adapter_files import base_kind, tokenizer_traits, trained_layers
from medcap.publish.card_data import CardData, last_part
from medcap.publish.run_paths import MODEL_FILES, WEIGHTS, have_same_weights
from medcap.recipe import read_yaml
from medcap.reporting.plots import read_curve

ADAPTER_FILES = (WEIGHTS, "adapter_config.json")
COMMON_FILES = ("generation_config.json", "processor_config.json")
PICKLED = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_LOCAL_PATH = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]")  # the start of an absolute or relative path


@dataclass(frozen=True)
class ReleaseSource:
    """What a release is written from.

    Attributes:
        run: Folder of a finished training run.
        evaluation: Folder of its evaluation, if there is one.
        card_data: Content of its card.
        local_paths: Paths of this machine, which no file of the release may contain.
        data: The data set that the run names; None for several.
    """

    run: Path
    evaluation: Path | None
    card_data: CardData
    local_paths: Collection[str]
    data: str | None = None

    @property
    def adapter(self) -> Path:
        """The folder of the adapter, or of the whole model."""
        return trained_folder(self.run)


def read_run(
    run: Path, evaluation: Path | None, comparison: Path | None, base: str | None, repo_id: str | None
) -> ReleaseSource:
    """Read the files of a run.

    Args:
        run: Folder of a finished training run.
        evaluation: Folder of `medcap evaluate`.
        comparison: comparison.json of `medcap compare`.
        base: Hub name of the base, if the run read it from a folder.
        repo_id: Hub name of the release.

    Raises:
        FileNotFoundError: A file is missing in the run.
        ValueError: The run contains a pickle, or the scores are another adapter's.
    """
    adapter, environment = trained_folder(run), run / "environment.json"
    is_full = adapter.name == "model"
    _check_files(adapter, MODEL_FILES if is_full else ADAPTER_FILES)
    if repo_id is not None:
        validate_repo_id(repo_id)
    recipe = read_yaml(adapter / "recipe.yaml")
    recipe.pop("resume_from_checkpoint", None)  # a local path without influence on the result
    config = {} if is_full else read_json(adapter / "adapter_config.json")
    trained_base = config.get("base_model_name_or_path") or recipe["model_name_or_path"]
    published_base, is_local = _published_base(trained_base, base)
    base_config = _base_config(*((str(adapter), None) if is_full else (trained_base, recipe.get("model_revision"))))
    adds_spaces, lowercases = tokenizer_traits(adapter / "tokenizer.json")
    card_data = CardData(
        base=published_base,
        base_is_local=is_local,
        base_kind=base_kind(adapter, config, base_config),
        recipe={**_without_local_paths(recipe), "model_name_or_path": published_base},
        environment=read_json(environment) if environment.is_file() else None,
        curve=read_curve(run / "metrics.jsonl"),
        energy=_read_energy(run / "emissions.csv"),
        evaluation=_read_evaluation(evaluation, adapter) if evaluation else None,
        comparison=Comparison.read(comparison) if comparison else None,
        repo_id=repo_id,
        config=base_config,
        processor_size=image_size_of(str(adapter)),
        format="full" if is_full else "adapter",
        layers={} if is_full else trained_layers(adapter / WEIGHTS),
        has_chat_template=(adapter / "chat_template.jinja").is_file(),
        tokenizer_adds_spaces=adds_spaces,
        tokenizer_lowercases=lowercases,
        averaged=read_json(adapter / AVERAGE)["adapters"] if (adapter / AVERAGE).is_file() else (),
    )
    if card_data.evaluation and card_data.comparison and not any(row.is_ours for row in card_data.systems):
        raise ValueError(f"{comparison} has no row of the evaluation {evaluation}; include it in medcap compare")
    values = (str(run.resolve()), trained_base, *recipe.values(), *source_paths(recipe["data_dir"]))
    local_paths = {value for value in values if isinstance(value, str) and os.path.isabs(value)}
    paths = source_paths(recipe["data_dir"])
    return ReleaseSource(run, evaluation, card_data, local_paths, paths[0] if len(paths) == 1 else None)


def _check_files(adapter: Path, weights: Sequence[str]) -> None:
    if pickled := [path for path in sorted(adapter.glob("*")) if path.suffix in PICKLED]:
        raise ValueError(f"{pickled[0]} is pickled and could run code when loaded; publish accepts safetensors only")
    for name in (*weights, *COMMON_FILES, "recipe.yaml"):
        if not (adapter / name).is_file():
            raise FileNotFoundError(f"{adapter / name} is missing; publish needs a run whose training has finished")


def _read_energy(path: Path) -> dict[str, float] | None:
    """Return the sums of codecarbon's emissions.csv (`report_to: codecarbon`), or None."""
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))  # a resumed run has several
    return {key: sum(float(row[key]) for row in rows) for key in ("duration", "energy_consumed", "emissions")}


def _published_base(trained: str, given: str | None) -> tuple[str, bool]:
    """Return the base's name in the release, and whether it is a local folder."""
    name = given or trained
    if not _LOCAL_PATH.match(name) and (given or not Path(name).is_dir()):
        validate_repo_id(name)
        if "/" in name:  # as every captioner on the Hub has
            return name, False
    return re.sub(r"[^\w.-]+", "-", last_part(name)), True


def _base_config(base: str, revision: str | None) -> PreTrainedConfig | None:
    """Return the base's config; None if it is not on this machine."""
    try:
        return AutoConfig.from_pretrained(base, revision=revision, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def _read_evaluation(folder: Path, adapter: Path) -> EvaluationResult:
    """Read metrics.json; raise ValueError if the scores are known to be another model's."""
    result = EvaluationResult.read(folder / "metrics.json")
    model = Path(result.model or adapter)
    is_other = not have_same_weights(model, adapter)
    if is_other and (model.is_dir() or str(model) == result.base):
        raise ValueError(f"{folder} holds the scores of {model}, not of {adapter}")
    return replace(result, model=_without_local_paths(result.model), base=_without_local_paths(result.base))


def _without_local_paths(value: Any) -> Any:
    """Reduce every local path in `value` to its last part; a recipe's prompt is not changed."""
    if isinstance(value, dict):
        return {key: inner if key == "prompt" else _without_local_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_local_paths(inner) for inner in value]
    return last_part(value) if isinstance(value, str) and _LOCAL_PATH.match(value) else value
