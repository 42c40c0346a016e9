"""A release: the folder that is published. It is written once, atomically, from a fixed list of files."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from safetensors import SafetensorError, safe_open

from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.io import new_folder, read_json, write_json
from medcap.logs import error_line, named_errors, token_pattern
from medcap.modeling.adapter import AVERAGE
from medcap.publish.card import hub_results, render_card
from medcap.publish.card_data import CardData, SystemRow, system_rows
from medcap.publish.examples import FILES as EXAMPLES
from medcap.publish.examples import INDEX, check_example, read_examples, write_examples
from medcap.publish.plots import check_plot, write_plots
from medcap.publish.run_paths import MODEL_CONFIG, MODEL_FILES, WEIGHTS, find_comparison, find_evaluation
from medcap.publish.run_reader import ADAPTER_FILES, COMMON_FILES, ReleaseSource, read_run
from medcap.reporting.plots import read_curve

logger = logging.getLogger(__name__)

Writer = Callable[[Path, ReleaseSource], None]  # writes a release into an empty folder, and checks it
HUB_RESULTS = f"{EVAL_RESULTS_FOLDER}/rocov2.yaml"
# the only files that are published: no optimizer state, no card written by PEFT, no images but the listed ones
FROM_ADAPTER = (
    WEIGHTS, "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "chat_template.jinja", "video_preprocessor_config.json",
    "qformer_tokenizer/tokenizer.json", "qformer_tokenizer/tokenizer_config.json", AVERAGE,
)  # fmt: skip
PLOTS = ("curve.png", "scores.png")  # check_release draws them again; the only other images are examples
GENERATED = (
    "adapter_config.json", "recipe.yaml", "environment.json", "metrics.jsonl", "metrics.json", "comparison.json",
    "predictions.csv", "README.md", HUB_RESULTS, INDEX, *PLOTS, *EXAMPLES,
)  # fmt: skip
RELEASE_FILES = frozenset(FROM_ADAPTER + GENERATED)
FULL_FILES = RELEASE_FILES - {*ADAPTER_FILES} | {*MODEL_FILES}  # of a release with a whole model


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

    Args:
        run: Folder of a finished training run.
        to: New or empty folder; no files remain after an error.
        evaluation: Folder of `medcap evaluate`; default: see `find_evaluation`.
        comparison: comparison.json of `medcap compare`; default: see `find_comparison`.
        base: Hub name of the base, if the run read it from a folder.
        repo_id: Hub name of the release, for its card.
        write: Another format than an adapter: `write_merged`, `write_onnx` or `write_space`.

    Raises:
        FileExistsError: `to` is not empty.
        FileNotFoundError: A file is missing in the run.
        ValueError: The run contains something that must not be published.
    """
    with new_folder(to) as part, named_errors(run):
        source = read_run(run, evaluation or find_evaluation(run), comparison or find_comparison(run), base, repo_id)
        is_full = source.card_data.format == "full"
        if is_full and write is not None:
            raise ValueError(f"{source.adapter} is a whole model: publish it without --merge, --onnx and --space")
        if source.card_data.base_is_local and write is None and not is_full:
            logger.warning(
                f"the base model {source.card_data.base!r} is a local folder: users of this adapter need a copy of it "
                "(or name a base on the Hub with --base)"
            )
        (write or write_release)(part, source)
    return to


def write_release(folder: Path, source: ReleaseSource) -> None:
    """Write the release of the run's adapter or model into `folder`, and check it. This is the default `Writer`."""
    write_files(folder, source)
    if source.card_data.format == "full":
        for name in MODEL_FILES:
            shutil.copyfile(source.adapter / name, folder / name)
    else:
        write_json(folder / "adapter_config.json", _adapter_config(source.adapter, source.card_data))
    write_card(folder, source.card_data)
    check_release(folder, source.local_paths)


def write_card(folder: Path, card_data: CardData) -> None:
    """Draw the plots and write README.md; last, because PEFT writes a README.md too."""
    card_data = replace(card_data, plots=write_plots(folder, card_data), examples=read_examples(folder))
    (folder / "README.md").write_text(render_card(card_data), encoding="utf-8")


def check_release(release: Path, local_paths: Collection[str] = ()) -> None:
    """Check that a release is complete and contains nothing that must not be published.

    Raises:
        ValueError: A file is missing, not in RELEASE_FILES or FULL_FILES, or pickled; contains a Hugging Face token, a
            path in the home folder or one of `local_paths`; or an image is neither a plot of the release's own numbers
            nor an example whose license allows redistribution.
    """
    is_full = (release / MODEL_CONFIG).is_file()
    needed, allowed = (MODEL_FILES, FULL_FILES) if is_full else (ADAPTER_FILES, RELEASE_FILES)
    check_files(release, (*needed, *COMMON_FILES, "README.md"), allowed, local_paths)


def check_files(
    release: Path, needed: Collection[str], allowed: Collection[str], local_paths: Collection[str]
) -> None:
    """Check a folder as `check_release` does, with its own lists of `needed` and `allowed` files."""
    paths = [path for path in sorted(release.rglob("*")) if path.is_symlink() or not path.is_dir()]
    files = {path.relative_to(release).as_posix(): path for path in paths}
    if missing := [name for name in needed if name not in files]:
        raise ValueError(f"{release} is not a complete release: {missing[0]} is missing")
    for name, path in files.items():
        if name not in allowed or not path.is_file():
            raise ValueError(f"{path} is not part of a release; remove it")
        if path.name in PLOTS:
            check_plot(path, read_curve(path.with_name("metrics.jsonl")), _read_systems(path.parent))
        elif path.parent.name == "examples":
            check_example(path)
        else:
            _check_text(name, _text(path), local_paths)


def _check_text(name: str, text: str, local_paths: Collection[str]) -> None:
    """Raise ValueError for a token or a local path in the text of a file."""
    if token_pattern().search(text):
        raise ValueError(f"{name} contains a Hugging Face token and must not be published")
    for path in {f"{Path.home()}/", *local_paths}:
        # at word boundaries, so that "arch/root" in a caption is not taken for /root
        if re.search(rf"(?<![\w.]){re.escape(path)}\b", text):
            raise ValueError(f"{name} contains the local path {path} and must not be published")


def _read_systems(release: Path) -> list[SystemRow]:
    """Return the rows that the release's scores.png shows."""
    evaluation, comparison = release / "metrics.json", release / "comparison.json"
    return system_rows(
        EvaluationResult.read(evaluation) if evaluation.is_file() else None,
        Comparison.read(comparison) if comparison.is_file() else None,
    )


def write_files(folder: Path, source: ReleaseSource) -> None:
    """Write all files of a release except adapter_config.json, the plots and the card."""
    card_data = source.card_data
    for name in FROM_ADAPTER:
        if (source.adapter / name).is_file() and (card_data.format == "adapter" or name != WEIGHTS):
            (folder / name).parent.mkdir(exist_ok=True)
            # without the mode: safetensors files are readable by their owner only
            shutil.copyfile(source.adapter / name, folder / name)
    recipe = yaml.safe_dump(dict(card_data.recipe), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    if card_data.environment is not None:
        write_json(folder / "environment.json", card_data.environment)
    if card_data.curve:
        lines = "".join(json.dumps(line) + "\n" for line in card_data.curve)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if card_data.comparison is not None:
        card_data.comparison.write(folder / "comparison.json")
    if (results := hub_results(card_data)) is not None:
        (folder / HUB_RESULTS).parent.mkdir()
        (folder / HUB_RESULTS).write_text(results, encoding="utf-8")
    if source.evaluation is not None and card_data.evaluation is not None:
        card_data.evaluation.write(folder / "metrics.json")
        shutil.copyfile(source.evaluation / "predictions.csv", folder / "predictions.csv")
        if source.data is not None and card_data.evaluation.model is not None:  # not of the release of an epoch
            write_examples(folder, source.data, card_data.evaluation.split, folder / "predictions.csv")


def _adapter_config(adapter: Path, card_data: CardData) -> dict[str, Any]:
    """Return the adapter's config without local paths; raise ValueError if loading would need medcap."""
    config = read_json(adapter / "adapter_config.json")
    if "medcap" in json.dumps(config.get("auto_mapping")):
        raise ValueError(f"{adapter}: auto_mapping names a class of medcap; loading the adapter would need medcap")
    revision = None if card_data.base_is_local else card_data.recipe.get("model_revision")
    return {**config, "base_model_name_or_path": card_data.base, "revision": revision, "inference_mode": True}


def _text(path: Path) -> str:
    """Return the text of a file, or the header of a weights file; raise ValueError for another format."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                return json.dumps([tensors.metadata(), list(tensors.keys())])
        if path.suffix == ".onnx":
            return path.read_bytes().decode("latin-1")  # finds paths between binary data
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path.name} is not in the format of its suffix: {error_line(error)}") from None
    return text
