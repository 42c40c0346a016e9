"""`medcap evaluate` and `medcap compare`."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcap.commands.launching import launch_options
from medcap.commands.options import (
    add_command,
    captioner_from_args,
    generation_options,
    json_option,
    layout_from_args,
    layout_options,
    output_option,
    overwrite_option,
    print_result,
    protocol_options,
)
from medcap.commands.score import imageclef_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import PartialState
    from datasets import Dataset

    from medcap.evaluation.folder import EvaluationFolder
    from medcap.evaluation.split import Split
    from medcap.inference import Captioner


def add_commands(commands: Any) -> None:
    """Add `evaluate` and `compare`."""
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "caption a split and score it",
        "medcap evaluate --model runs/mine/adapter --data data/rocov2 --split test --out eval/mine",
    )
    evaluate.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    evaluate.add_argument(
        "--data", required=True, nargs="+", help="folders, CSV files, or data sets' names on the Hub"
    )
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"), help="(default: test)")
    output_option(evaluate, "folder", required=True, help="folder of metrics.json, predictions.csv, report.html")
    overwrite_option(evaluate, "an evaluation of another model or data, or with other options")
    evaluate.add_argument("--baseline", metavar="BASE", help="evaluate this model too, and compare the two")
    evaluate.add_argument("--name", help="name of the system in tables (default: the model's folder)")
    evaluate.add_argument("--max_eval_samples", type=int, help="evaluate only N images, chosen by a hash of their ids")
    evaluate.add_argument("--license_filter", "--license-filter", default="any", choices=("any", "commercial"))
    evaluate.add_argument("--dedupe", action="store_true", help="use only the first of near-duplicate images")
    evaluate.add_argument(
        "--nearest", type=int, default=2000, metavar="N",
        help="baseline: the most similar of N training images; 0 for none (default: 2000)",
    )  # fmt: skip
    evaluate.add_argument(
        "--feature_cache", "--feature-cache", default="auto", help="cache of image features: auto, off, or a folder"
    )
    evaluate.add_argument(
        "--feature_cache_gb", "--feature-cache-gb", type=float, help="maximum size of that folder in GB"
    )
    evaluate.add_argument(
        "--shuffle_images", "--shuffle-images", action="store_true", help="caption shuffled images, as a control"
    )
    json_option(evaluate)
    protocol_options(evaluate)
    layout_options(evaluate, "default: as in the adapter's recipe")
    generation_options(evaluate)
    launch_options(evaluate)

    compare = add_command(
        commands,
        "compare",
        _compare,
        "compare evaluations in one table",
        "medcap compare eval/base eval/mine --out eval/comparison",
    )
    compare.add_argument("folders", type=Path, nargs="+", metavar="EVAL_DIR", help="folders that evaluate wrote")
    output_option(
        compare, "folder", required=True, help="folder of comparison.html, comparison.md and comparison.json"
    )
    overwrite_option(compare, "a comparison of other systems or data")
    compare.add_argument(
        "--data", nargs="+", help="images and references of comparison.html (default: the data that was evaluated)"
    )
    layout_options(compare, "default: as in the evaluation")
    json_option(compare)


def _evaluate(args: argparse.Namespace) -> None:
    from medcap.evaluation.folder import evaluation_folder
    from medcap.io import read_json
    from medcap.processes import launched_processes

    with launched_processes() as processes:
        if processes is not None and not processes.is_main_process:
            _assist(args, processes)
            return
        with evaluation_folder(args.out, _options(args), args.overwrite) as folder:
            printed = _evaluate_into(args, folder, processes)
    result = read_json(args.out / "metrics.json")
    if args.baseline is not None:
        result["comparison"] = read_json(args.out / "comparison.json")
    print_result(args, result, "\n".join([*printed, f"Report: {args.out / 'report.html'}"]))


# options without influence on the results
_FREE = {
    "run", "debug", "json", "output", "out", "overwrite", "feature_cache", "batch_size", "accelerate", "num_processes",
}  # fmt: skip


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `medcap evaluate` that its results depend on, with absolute paths."""
    given = {key: value for key, value in vars(args).items() if key not in _FREE and value is not None}
    for key in ("model", "base", "baseline"):
        if key in given:
            given[key] = _absolute(given[key])
    given["data"] = ", ".join(map(_absolute, args.data))
    return given


def _absolute(name: str) -> str:
    """Return the absolute path of a file or folder; a name on the Hub as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _load(args: argparse.Namespace, processes: PartialState | None) -> tuple[Captioner, Split]:
    """Load captioner and split; the main process decodes the images before the others do."""
    from medcap.data.selection import Selection
    from medcap.evaluation.split import load_split

    device = None if processes is None else str(processes.device)
    captioner = captioner_from_args(args, device)  # first: an invalid name fails before images are decoded
    selection = Selection(license_filter=args.license_filter, dedupe=args.dedupe)
    layout = layout_from_args(args, captioner.recipe)
    with nullcontext() if processes is None else processes.main_process_first():
        split = load_split(
            args.data, args.split, layout=layout, selection=selection, max_eval_samples=args.max_eval_samples
        )
    return replace(captioner, processes=processes), split


def _prepare(args: argparse.Namespace, captioner: Captioner, split: Split) -> tuple[Captioner, Split]:
    """Open the feature cache, and shuffle the images if --shuffle_images is given."""
    captioner = captioner.with_cache(args.feature_cache, len(split.rows) + min(args.nearest, split.training_images))
    return captioner, split.with_shuffled_images() if args.shuffle_images else split


def _assist(args: argparse.Namespace, processes: PartialState) -> None:
    """Caption a part of the images for the main process."""
    from medcap.evaluation.predict import predict

    captioner, split = _prepare(args, *_load(args, processes))
    predict(captioner, split, args.out, batch_size=args.batch_size, nearest=args.nearest)
    if args.baseline is not None:
        predict(_baseline(args, captioner, split), split, args.out, batch_size=args.batch_size)


def _evaluate_into(args: argparse.Namespace, folder: EvaluationFolder, processes: PartialState | None) -> list[str]:
    """Evaluate into the staging folder; return the text to print."""
    from medcap.evaluation.evaluate import evaluate
    from medcap.io import read_json, write_json
    from medcap.reporting.evaluation_page import write_page
    from medcap.reporting.tables import text_table, verdict_text

    captioner, split = _load(args, processes)
    out = folder.start(captioner, split)
    captioner, split = _prepare(args, captioner, split)
    name = "-".join(filter(None, (Path(args.model).name, args.revision)))
    name = args.name or (f"{name}, shuffled images" if args.shuffle_images else name)
    evaluation = evaluate(captioner, split, out, name=name, batch_size=args.batch_size, nearest=args.nearest)
    write_page(out / "report.html", evaluation, split.rows)
    result, captions = evaluation.result, dict(zip(split.ids, evaluation.captions, strict=True))
    printed = [text_table(result.rows), f"\n{verdict_text(result)}\n{result.signature}"]
    if args.protocol != "coco":
        scores = imageclef_scores(args, captions, split.references, out / "predictions.csv")
        write_json(out / "metrics.json", {**read_json(out / "metrics.json"), "imageclef": scores})
        printed.append(json.dumps({"imageclef": scores}, indent=2, ensure_ascii=False))
    if args.baseline is not None:
        printed += ["", *_evaluate_baseline(args, captioner, split, out)]
    return printed


def _evaluate_baseline(args: argparse.Namespace, captioner: Captioner, split: Split, out: Path) -> list[str]:
    """Evaluate --baseline on the same split with the same generation settings, and compare the two."""
    from medcap.evaluation.evaluate import evaluate
    from medcap.reporting.evaluation_page import write_page

    other = _baseline(args, captioner, split)
    name, folder = f"{Path(args.baseline).name} (baseline)", out / "baseline"
    evaluation = evaluate(other, split, folder, name=name, batch_size=args.batch_size, baselines=False)
    write_page(folder / "report.html", evaluation, split.rows)
    return [*_compare_into(out, [out, folder], split.rows), f"Side by side: {args.out / 'comparison.html'}"]


def _baseline(args: argparse.Namespace, captioner: Captioner, split: Split) -> Captioner:
    """Load --baseline with the generation settings, device and processes of `captioner`."""
    from medcap.inference import load_captioner

    device = str(captioner.model.device)
    other = load_captioner(
        args.baseline, image_size=captioner.image_size, device=device, precision=captioner.precision
    )
    other = replace(
        other,
        generation_config=captioner.generation_config,
        prompt=captioner.prompt,
        detokenize=captioner.detokenize,
        processes=captioner.processes,
    )
    return other.with_cache(args.feature_cache, len(split.rows))


def _compare(args: argparse.Namespace) -> None:
    """Compare evaluations, and print the table."""
    from medcap.evaluation.compare import system_folders
    from medcap.evaluation.folder import read_options
    from medcap.io import read_json
    from medcap.locks import lock_folder
    from medcap.reporting.comparison_page import read_rows

    with lock_folder(args.out):
        system_folders(args.folders)  # an invalid one fails before the data is read
        first = args.folders[0]
        rows = read_rows(first, args.data, layout_from_args(args, read_options(first)))
        printed = _compare_into(args.out, args.folders, rows, args.overwrite)
    text = "\n".join([*printed, f"Side by side: {args.out / 'comparison.html'}"])
    print_result(args, read_json(args.out / "comparison.json"), text)


def _compare_into(out: Path, folders: Sequence[Path], rows: Dataset | None, overwrite: bool = False) -> list[str]:
    """Write comparison.json, comparison.md and comparison.html; return the text to print."""
    from medcap.evaluation.compare import compare
    from medcap.reporting.comparison_page import write_comparison_page
    from medcap.reporting.tables import differences_text, text_table, write_comparison

    comparison = compare(folders, out, overwrite=overwrite)
    write_comparison(out / "comparison.md", comparison)
    write_comparison_page(out / "comparison.html", comparison, folders, rows)
    return [text_table(comparison.systems), f"\n{differences_text(comparison.tests)}"]
