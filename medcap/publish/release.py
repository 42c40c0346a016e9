"""A release: the folder that is published. Written once and whole, from files named here, and never changed again."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from medcap.io import new_folder, write_json
from medcap.logs import error_line, named_errors, token_pattern
from medcap.publish.card import CardData, hub_results, is_row_of, last_part, render_card
from medcap.publish.plots import check_plot, read_curve, write_plots
from medcap.publish.run_paths import WEIGHTS, find_evaluation
from medcap.recipe import read_yaml

logger = logging.getLogger(__name__)

# what writes a release: into a folder, of a run, with an evaluation of it, the facts, and the places to be kept out
Writer = Callable[[Path, Path, "Path | None", CardData, Collection[str]], None]
HUB_RESULTS = f"{EVAL_RESULTS_FOLDER}/rocov2.yaml"
# what goes out, and nothing else: no optimizer, no image, no card of PEFT's
FROM_ADAPTER = (
    WEIGHTS, "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
)  # fmt: skip
PLOTS = ("curve.png", "scores.png")  # the only pictures: check_release draws them again
MADE_HERE = (
    "adapter_config.json", "recipe.yaml", "environment.json", "metrics.jsonl", "metrics.json", "comparison.json",
    "predictions.csv", "README.md", HUB_RESULTS, *PLOTS,
)  # fmt: skip
RELEASE_FILES = frozenset(FROM_ADAPTER + MADE_HERE)
NEEDED = (WEIGHTS, "adapter_config.json", "generation_config.json", "processor_config.json")

PICKLED = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_PLACE = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]")  # how a path begins that is a place on one machine


def build_release(
    run: Path,
    to: Path,
    *,
    evaluation: Path | None = None,
    comparison: Path | None = None,
    base: str | None = None,
    repo_id: str | None = None,
    write: Writer | None = None,
) -> Path:
    """Write the release of the run's adapter as the new folder `to`, and return it.

    `evaluation` is a folder that `medcap evaluate` wrote (None: as `find_evaluation` finds it), `comparison` the file of
    `medcap compare`. `base` is the base's name on the Hub, for a run that read it from a folder; `repo_id` the
    release's, for its card. `write` makes another form than an adapter: `write_merged`, `write_onnx`, `write_space`.
    Raises FileExistsError for a `to` that holds something, FileNotFoundError for what is missing, ValueError for what
    must not be published, and what `write` raises; nothing is left behind then.
    """
    with new_folder(to) as part, named_errors(run):
        evaluation = evaluation or find_evaluation(run)
        facts, places = read_card_data(run, evaluation, comparison, base, repo_id)
        if facts.base_is_local and write is None:
            logger.warning(
                f"the base {facts.base} is a local folder: whoever loads this adapter must bring it (or give --base)"
            )
        (write or write_release)(part, run, evaluation, facts, places)
    return to


def write_release(folder: Path, run: Path, evaluation: Path | None, facts: CardData, places: Collection[str]) -> None:
    """Write the release of the run's adapter into `folder`, and check it; the rest as `read_card_data` gives it."""
    write_files(folder, run / "adapter", evaluation, facts)
    write_json(folder / "adapter_config.json", _adapter_config(run / "adapter", facts))
    write_card(folder, facts)
    check_release(folder, places)


def write_card(folder: Path, facts: CardData) -> None:
    """Draw the plots and write README.md, the last of all files: PEFT writes cards as well."""
    facts = replace(facts, plots=write_plots(folder, facts))
    (folder / "README.md").write_text(render_card(facts), encoding="utf-8")


def check_release(release: Path, places: Collection[str] = ()) -> None:
    """Raise ValueError for a file that is missing or not in RELEASE_FILES, or is a pickle by another name, and
    for any that holds a Hugging Face token, a path into the user's home or one of `places`.

    A picture must be a plot of the release's own numbers: no image of the data goes out under the name of one.
    """
    check_files(release, (*NEEDED, "README.md"), RELEASE_FILES, places)


def check_files(release: Path, needed: Collection[str], allowed: Collection[str], places: Collection[str]) -> None:
    """As `check_release`, of a folder that must hold what is `needed` and may hold what is `allowed`."""
    paths = sorted(release.rglob("*")) if release.is_dir() else []
    files = [path for path in paths if not _is_parent(path, release, allowed)]
    found = {path.relative_to(release).as_posix(): path for path in files}
    if lacking := [name for name in needed if name not in found]:
        raise ValueError(f"{release} is no whole release: {lacking[0]} is missing")
    for name, path in found.items():
        if name not in allowed or not path.is_file():
            raise ValueError(f"{path} is no part of a release: take it out")
        text = "" if path.name in PLOTS else _text(path)
        if token_pattern().search(text):
            raise ValueError(f"{name} holds a Hugging Face token: it must not be published")
        for place in {f"{Path.home()}/", *places}:
            # between words, so that "arch/root" in a caption is not the home of root
            if re.search(rf"(?<![\w.]){re.escape(place)}\b", text):
                raise ValueError(f"{name} names {place}, a place on this machine: it must not be published")
    for name in (name for name in PLOTS if name in found):
        check_plot(found[name], read_curve(release / "metrics.jsonl"), _read_systems(release))


def read_card_data(
    run: Path, evaluation: Path | None, comparison: Path | None, base: str | None, repo_id: str | None
) -> tuple[CardData, set[str]]:
    """What the card says, with no place of this machine in it; and the places that were taken out."""
    adapter = run / "adapter"
    if pickled := [path for path in sorted(adapter.glob("*")) if path.suffix in PICKLED]:
        raise ValueError(f"{pickled[0]} is pickled, and loading it could run anything: publish takes safetensors only")
    for name in (*NEEDED, "recipe.yaml"):
        if not (adapter / name).is_file():
            raise FileNotFoundError(f"{adapter / name} is missing: publish takes a run that training has finished")
    if repo_id is not None:
        validate_repo_id(repo_id)
    recipe = read_yaml(adapter / "recipe.yaml")
    recipe.pop("resume_from_checkpoint", None)  # of this machine, and no part of what is made
    trained = _read_json(adapter / "adapter_config.json")["base_model_name_or_path"] or recipe["model_name_or_path"]
    published, is_local = _published_base(trained, base)
    environment = run / "environment.json"
    facts = CardData(
        base=published,
        base_is_local=is_local,
        base_image_size=_image_size(trained, recipe.get("model_revision")),
        recipe={**_without_places(recipe), "model_name_or_path": published},
        environment=_read_json(environment) if environment.is_file() else None,
        curve=read_curve(run / "metrics.jsonl"),
        energy=_read_energy(run / "emissions.csv"),
        evaluation=_read_evaluation(evaluation, adapter) if evaluation else None,
        comparison=_read_json(comparison, "systems") if comparison else None,
        repo_id=repo_id,
    )
    rows = facts.comparison["systems"] if facts.comparison else []
    if facts.evaluation and rows and not any(is_row_of(row, facts.evaluation) for row in rows):
        raise ValueError(f"{comparison} has no row of the evaluation {evaluation}: compare it with the others")
    places = {str(run.resolve()), trained, *(value for value in recipe.values() if isinstance(value, str))}
    return facts, {place for place in places if os.path.isabs(place)}


def _read_energy(path: Path) -> dict[str, float] | None:
    """What codecarbon counted of the training (`report_to: codecarbon`); None where it did not."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))  # a run that was gone on with has several
    return {key: sum(float(row[key]) for row in rows) for key in ("duration", "energy_consumed", "emissions")}


def _published_base(trained: str, given: str | None) -> tuple[str, bool]:
    """The name of the base in the release, and whether it is only that of a folder here."""
    name = given or trained
    if not _PLACE.match(name) and (given or not Path(name).is_dir()):
        validate_repo_id(name)
        return name, False
    short = re.sub(r"[^\w.-]+", "-", last_part(name))
    return short, True


def _image_size(base: str, revision: str | None) -> int | None:
    """Pixels a side that the base's positions are made for; None where its config is not on this machine."""
    try:
        return int(_config(base, revision).vision_config.image_size)
    except (OSError, ValueError):
        return None


def _config(base: str, revision: str | None) -> Any:
    return AutoConfig.from_pretrained(base, revision=revision, local_files_only=True, trust_remote_code=False)


def _read_evaluation(folder: Path, adapter: Path) -> dict[str, Any]:
    """The evaluation's metrics.json; ValueError when it is not of this adapter, as far as can be told."""
    result = _read_json(folder / "metrics.json", "name", "split", "n", "metrics", "signature")
    model = Path(result.get("model", adapter))
    weights = model / WEIGHTS if (model / WEIGHTS).is_file() else None
    is_other = model.is_dir() and (weights is None or weights.read_bytes() != (adapter / WEIGHTS).read_bytes())
    if is_other or str(model) == result.get("base"):
        raise ValueError(f"{folder} holds the scores of {model}, not of {adapter}")
    return {**result, **{key: _without_places(result[key]) for key in ("model", "base") if key in result}}


def _read_systems(release: Path) -> list[dict[str, Any]]:
    """The rows that a release's scores.png shows."""
    evaluation, comparison = (
        _read_json(release / name) if (release / name).is_file() else None
        for name in ("metrics.json", "comparison.json")
    )
    return CardData("", False, None, {}, evaluation=evaluation, comparison=comparison).systems


def _is_parent(path: Path, release: Path, allowed: Collection[str]) -> bool:
    """Whether `path` is a folder that only holds files of a release."""
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and any(name.startswith(f"{path.relative_to(release)}/") for name in allowed)


def _read_json(path: Path, *keys: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if lacking := [key for key in keys if key not in content]:
        raise ValueError(f"{path} has no {lacking[0]!r}: it is not what medcap writes under this name")
    return content


def _without_places(value: Any) -> Any:
    """`value` with every path of this machine in it reduced to its last part; a recipe's prompt stays as it is."""
    if isinstance(value, dict):
        return {key: inner if key == "prompt" else _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return last_part(value) if isinstance(value, str) and _PLACE.match(value) else value


def write_files(part: Path, adapter: Path, evaluation: Path | None, facts: CardData) -> None:
    """Write all of a release but weights' config and card: what lies beside an adapter, and what was measured."""
    for name in FROM_ADAPTER:
        if (adapter / name).is_file() and (facts.format == "adapter" or name != WEIGHTS):
            shutil.copyfile(adapter / name, part / name)  # without its mode: safetensors writes for the owner alone
    (part / "recipe.yaml").write_text(yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True), "utf-8")
    if facts.environment is not None:
        write_json(part / "environment.json", facts.environment)
    if facts.curve:
        lines = "".join(json.dumps(line) + "\n" for line in facts.curve)
        (part / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if facts.comparison is not None:
        write_json(part / "comparison.json", facts.comparison)
    if (results := hub_results(facts)) is not None:
        (part / HUB_RESULTS).parent.mkdir()
        (part / HUB_RESULTS).write_text(results, encoding="utf-8")
    if evaluation is not None:
        write_json(part / "metrics.json", facts.evaluation)
        shutil.copyfile(evaluation / "predictions.csv", part / "predictions.csv")


def _adapter_config(adapter: Path, facts: CardData) -> dict[str, Any]:
    """The adapter's config as it can be loaded anywhere; ValueError when loading would need medcap."""
    config = _read_json(adapter / "adapter_config.json")
    if "medcap" in json.dumps(config.get("auto_mapping")):
        raise ValueError(f"{adapter}: auto_mapping names medcap, and who does not have it could not load this")
    revision = None if facts.base_is_local else facts.recipe.get("model_revision")
    return {**config, "base_model_name_or_path": facts.base, "revision": revision, "inference_mode": True}


def _text(path: Path) -> str:
    """What can be read in a file of a release: all of it, or the header of weights; ValueError for another format."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                return json.dumps([tensors.metadata(), list(tensors.keys())])
        if path.suffix == ".onnx":
            return path.read_bytes().decode("latin-1")  # a path in it is bytes among bytes
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path.name} is not what its name says, perhaps a pickle: {error_line(error)}") from None
    return text
