"""`medcap ...`: parses the command line, calls one function of a room, prints what it returns.

Rooms are imported when their command runs, so that `medcap --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcap import __version__
from medcap.quiet import hush, one_line_errors

HERE = Path(__file__).parent
_FORMAT_OPTIONS = {
    "image_column": str, "caption_column": str, "group_column": str,
    "valid_fraction": float, "test_fraction": float, "split_seed": int,
}  # fmt: skip


def shipped(name: str) -> Path:
    """The folder `recipes` or `scripts`: beside the package in a checkout, inside it when installed."""
    inside = HERE / name
    return inside if inside.is_dir() else HERE.parent / name


def main(words: list[str] | None = None) -> None:
    """Run one command; ends with status 2 for a wrong command or recipe, 1 for failed work."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["train"]:  # every word belongs to the recipe
        sys.exit(train(words[1:]))
    args = make_parser().parse_args(words)
    hush()
    with one_line_errors(args.debug):
        check_alone(words[0])
        args.run(args)


def check_alone(command: str) -> None:
    """RecipeError where several processes were started: each would do all of the work, and write the same files."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from medcap.recipe import RecipeError

        raise RecipeError(f"medcap {command} works in one process: start it without accelerate launch")


def train(words: list[str]) -> int:
    """`medcap train --config X.yaml [--accelerate ddp [--num_processes 4]] ...`: as `accelerate launch` does."""
    parser = argparse.ArgumentParser(
        prog="medcap train", usage="medcap train --config RECIPE [--any_key value]", add_help=False
    )
    parser.add_argument("--accelerate", default="cpu" if not _has_cuda() else None)
    parser.add_argument("--num_processes")
    args, rest = parser.parse_known_args(words)
    command = launch(rest, args.accelerate, args.num_processes)
    # what is started here inherits it, and waits too: training itself heeds them, and leaves with a checkpoint
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(words: list[str], config: str | None, num_processes: str | None = None) -> list[str]:
    """The command `accelerate launch [--config_file ...] scripts/train.py ...`; `config` is a name or a file."""
    chosen: list[str] = []
    if config is not None:
        known = shipped("recipes") / "accelerate" / f"{config}.yaml"
        if not known.is_file() and not Path(config).is_file():
            names = ", ".join(sorted(path.stem for path in known.parent.glob("*.yaml")))
            sys.stderr.write(f"medcap: error: --accelerate {config}: no such file; known names are {names}\n")
            sys.exit(2)
        chosen = ["--config_file", str(known if known.is_file() else config)]
    if config == "cpu":  # or accelerate tells at length that it chose the number itself
        chosen += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    if num_processes is not None:
        chosen += ["--num_processes", num_processes]
    chosen += ["--quiet"]  # or its own traceback follows the line in which training says what is wrong
    return [sys.executable, "-m", "medcap.launch", *chosen, str(shipped("scripts") / "train.py"), *words]


def _has_cuda() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands but `train`, whose options are the keys of a recipe."""
    parser = argparse.ArgumentParser(prog="medcap", description="Radiology image captioning: BLIP, LoRA, ROCOv2.")
    parser.add_argument("--version", action="version", version=f"medcap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quickstart = _command(commands, "quickstart", _quickstart, "the whole story offline, on phantoms")
    quickstart.add_argument(
        "--out", type=Path, default=Path("quickstart"), help="folder to make (default: quickstart)"
    )
    quickstart.add_argument("--short", action="store_true", help="few images: shows that it runs, not how well")

    data = _command(commands, "data", None, "make data sets").add_subparsers(required=True, metavar="WHAT")
    phantom = _command(data, "phantom", _phantom, "write a small synthetic data set in ROCOv2's layout")
    phantom.add_argument("--out", type=Path, required=True, help="new or empty folder")
    for split, count in (("train", 2000), ("valid", 200), ("test", 300)):
        phantom.add_argument(f"--{split}", type=int, default=count, help=f"images (default: {count})")
    phantom.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")

    download = _command(data, "download", _download, "fetch ROCOv2, resumed after a break, verified")
    download.add_argument("--source", choices=("zenodo", "hub"), required=True, help="zips, or the mirror's parquet")
    download.add_argument("--out", type=Path, required=True, help="folder for the files; what is complete in it stays")
    download.add_argument(
        "--splits", nargs="+", default=["train", "valid", "test"], metavar="SPLIT", help="(default: all)"
    )

    audit = _command(data, "audit", _audit, "look for broken files, repetitions, leaks across splits, licences")
    audit.add_argument("data", metavar="DIR", help="a folder, a CSV file, or a data set's name on the Hub")
    audit.add_argument(
        "--out", type=Path, default=Path("report.json"), help="and the page beside it (default: report.json)"
    )
    audit.add_argument("--tokenizer", help="folder or Hub name of the base whose tokens are counted (default: BLIP's)")
    audit.add_argument("--max_caption_tokens", type=int, nargs="+", help="count the captions that these limits cut")
    audit.add_argument("--num_proc", type=int, help="processes that decode images (default: one a core)")
    _format_options(audit, "as in a recipe, needed where the data is not in ROCOv2's layout")

    _command(commands, "train", None, "train a recipe: medcap train --config recipes/X.yaml [--any_key value]")

    evaluate = _command(commands, "evaluate", _evaluate, "caption a split and score it")
    evaluate.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    evaluate.add_argument("--data", required=True, help="a folder, a CSV file, or a data set's name on the Hub")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"), help="(default: test)")
    evaluate.add_argument(
        "--out", type=Path, required=True, help="folder of metrics.json, predictions.csv, report.html"
    )
    evaluate.add_argument("--baseline", metavar="BASE", help="evaluate this model too, and compare the two")
    evaluate.add_argument("--name", help="what the system is called in tables (default: the model's folder)")
    evaluate.add_argument("--max_eval_samples", type=int, help="only the first so many images")
    evaluate.add_argument("--license_filter", "--license-filter", default="any", choices=("any", "commercial"))
    evaluate.add_argument("--dedupe", action="store_true", help="of pictures that are nearly the same, only the first")
    evaluate.add_argument(
        "--nearest", type=int, default=2000, metavar="N",
        help="baseline: the most alike of N training images; 0 for none (default: 2000)",
    )  # fmt: skip
    evaluate.add_argument(
        "--feature_cache",
        "--feature-cache",
        default="auto",
        help="each image is encoded once: auto, off, or the folder to keep features in",
    )
    evaluate.add_argument("--shuffle_images", "--shuffle-images", action="store_true", help="caption wrong pictures")
    _protocol_options(evaluate)
    _format_options(evaluate, "as in the adapter's recipe, unless given")
    _generation_options(evaluate)

    score = _command(commands, "score", _score, "score captions without model and images")
    score.add_argument("--predictions", type=Path, required=True, help="CSV with the columns ID,Caption")
    score.add_argument("--references", type=Path, required=True, help="CSV with the columns ID,Caption")
    score.add_argument("--out", type=Path, help="also write the scores into this JSON file")
    _protocol_options(score)

    compare = _command(commands, "compare", _compare, "put evaluations into one table")
    compare.add_argument("folders", type=Path, nargs="+", metavar="EVAL_DIR", help="folders that evaluate wrote")
    compare.add_argument("--out", type=Path, required=True, help="folder of comparison.json and comparison.md")

    caption = _command(commands, "caption", _caption, "caption images: one JSON line each")
    caption.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_DIR")
    caption.add_argument("--model", required=True, help="base or adapter: folder or Hub name")
    caption.add_argument("--out", type=Path, help="write the lines here instead of the terminal")
    caption.add_argument("--frame", type=int, help="of files with several, from 0 (default: DICOM's middle one)")
    _generation_options(caption)

    publish = _command(commands, "publish", _publish, "make a release folder, or push it to the Hub")
    publish.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    where = publish.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, help="new folder for the release")
    where.add_argument("--repo-id", "--repo_id", help="NAMESPACE/NAME on the Hub")
    seen = publish.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="only you can see the repository (the default)")
    seen.add_argument("--public", action="store_true", help="anyone can see it")
    publish.add_argument("--overwrite", action="store_true", help="replace what a repository of other work holds")
    publish.add_argument("--evaluation", type=Path, help="folder that evaluate wrote (default: RUN_DIR/eval)")
    publish.add_argument("--comparison", type=Path, help="comparison.json that compare wrote")
    publish.add_argument("--base", help="name of the base on the Hub, when training read it from a folder")
    kind = publish.add_mutually_exclusive_group()
    kind.add_argument(
        "--merge", action="store_true", help="with --to: a whole model, the adapter merged into its base"
    )
    kind.add_argument("--onnx", action="store_true", help="with --to: encoder and decoder as ONNX (extra onnx)")
    kind.add_argument("--space", action="store_true", help="with --to: a page that captions pictures, for Spaces")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None] | None, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    if run is not None:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
    return parser


def _protocol_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other scores")
    group.add_argument(
        "--protocol", choices=("coco", "imageclef"), default="coco", help="also as ImageCLEFmedical does"
    )
    group.add_argument(
        "--bertscore", action="store_true", help="with BERTScore: needs the extra bertscore and the Hub"
    )


def _format_options(parser: argparse.ArgumentParser, text: str) -> None:
    group = parser.add_argument_group("format of the data", text)
    group.add_argument("--data_format", "--data-format", choices=("auto", "rocov2", "imagefolder", "csv", "hub"))
    for name, kind in _FORMAT_OPTIONS.items():
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind)


def _generation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation", "as the adapter was trained, unless given")
    for name, kind in (
        ("num_beams", int), ("max_new_tokens", int), ("no_repeat_ngram_size", int), ("length_penalty", float),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=kind)
    group.add_argument("--revision", help="branch, tag or commit of a --model on the Hub, such as epoch-3")
    group.add_argument("--base", help="the adapter's base, when it is not where its name says")
    group.add_argument("--image_size", type=int, help="pixels a side")
    group.add_argument("--batch_size", type=int, help="images at once (default: 16 on a CPU, what fits on a GPU)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the computation (default: as in the adapter's recipe; of a base auto)",
    )
    group.add_argument(
        "--no_restore", "--no-restore", action="store_true", help="leave captions as the decoder writes them"
    )


def _captioner(args: argparse.Namespace) -> Any:
    from medcap.inference import load_captioner

    names = ("num_beams", "max_new_tokens", "no_repeat_ngram_size", "length_penalty")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return load_captioner(
        _place(args.model, args.revision),
        base=args.base,
        image_size=args.image_size,
        generation=given,
        precision=args.precision,
        restore=not args.no_restore,
    )


def _place(model: str, revision: str | None) -> str:
    """The model as it is named, or the folder that its revision was fetched into."""
    if revision is None:
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model, revision=revision)


def _format(args: argparse.Namespace, adapter: str | None = None) -> Any:
    """The data's format; unless told otherwise the adapter's, or images of its training would be in the test."""
    from medcap.data.formats import Format
    from medcap.inference import adapter_recipe

    recipe, names = adapter_recipe(adapter) if adapter else {}, ("data_format", *_FORMAT_OPTIONS)
    trained = {name: recipe[name] for name in names if name in recipe}
    return Format(**{**trained, **{name: getattr(args, name) for name in names if getattr(args, name) is not None}})


def _quickstart(args: argparse.Namespace) -> None:
    from medcap.quickstart import quickstart

    quickstart(args.out, short=args.short)


def _phantom(args: argparse.Namespace) -> None:
    from medcap.data.phantom import write_phantom

    write_phantom(args.out, train=args.train, valid=args.valid, test=args.test, seed=args.seed)
    print(f"{args.out}: {args.train} training, {args.valid} validation and {args.test} test images")


def _download(args: argparse.Namespace) -> None:
    from medcap.data.download import download_hub, download_zenodo

    fetch = download_zenodo if args.source == "zenodo" else download_hub
    for path in fetch(args.out, args.splits):
        print(path)


def _audit(args: argparse.Namespace) -> None:
    from medcap.data.audit import LIMITS
    from medcap.data.audit_page import summary, write_audit

    report = write_audit(
        args.data, args.out, args.tokenizer, args.max_caption_tokens or LIMITS, args.num_proc, _format(args)
    )
    print(f"{summary(report)}\n\n{args.out} holds all of it, {args.out.with_suffix('.html')} shows it")


def _evaluate(args: argparse.Namespace) -> None:
    from medcap.data.selection import Selection
    from medcap.evaluation.evaluate import evaluate
    from medcap.evaluation.report import text_table, verdict_text
    from medcap.evaluation.split import load_split

    captioner = _captioner(args)  # first: a wrong name is said before every image is decoded
    wanted = Selection(license_filter=args.license_filter, dedupe=args.dedupe)
    form = _format(args, captioner.adapter)
    split = load_split(args.data, args.split, form=form, wanted=wanted, max_eval_samples=args.max_eval_samples)
    name = args.name or "-".join(filter(None, (Path(args.model).name, args.revision)))
    captioner = captioner.with_cache(args.feature_cache, len(split.rows) + min(args.nearest, split.training_images))
    if args.shuffle_images:
        split, name = split.with_shuffled_images(), args.name or f"{name}, wrong pictures"
    result, captions = evaluate(
        captioner, split, args.out, name=name, batch_size=args.batch_size, nearest=args.nearest
    )
    others = {key.replace("_", " "): result[key] for key in ("wrong_pictures", "restored") if key in result}
    rows = {**result["baselines"], **others}
    print(text_table([result, *({"name": name, **row} for name, row in rows.items())]))
    print(f"\n{verdict_text(result)}\n{result['signature']}\n{args.out / 'report.html'} shows it")
    _other_scores(args, captions, split.references, args.out / "predictions.csv", split.ids, args.out / "metrics.json")
    if args.baseline is not None:
        _evaluate_baseline(args, captioner, split)


def _evaluate_baseline(args: argparse.Namespace, captioner: Any, split: Any) -> None:
    """Caption the same split with the other model, asked in the same way; prints the two side by side."""
    from medcap.evaluation.compare import compare
    from medcap.evaluation.evaluate import evaluate
    from medcap.evaluation.report import differences_text, text_table
    from medcap.inference import load_captioner
    from medcap.modeling.precision import precision_name

    precision = precision_name(captioner.model.dtype)
    other = load_captioner(args.baseline, image_size=captioner.image_size, precision=precision)
    other = replace(other, generation=captioner.generation, prompt=captioner.prompt, restore=captioner.restore)
    other = other.with_cache(args.feature_cache, len(split.rows))
    name = f"{Path(args.baseline).name} (baseline)"
    evaluate(other, split, args.out / "baseline", name=name, batch_size=args.batch_size, baselines=False)
    comparison = compare([args.out, args.out / "baseline"], args.out)
    print(f"\n{text_table(comparison['systems'])}\n\n{differences_text(comparison['tests'])}")
    print(f"{args.out / 'comparison.md'} has the intervals")


def _score(args: argparse.Namespace) -> None:
    from medcap.evaluation.coco import score_captions
    from medcap.evaluation.predictions import paired
    from medcap.evaluation.statistics import bootstrap
    from medcap.training.run import write_json

    ids, predictions, references = paired(args.predictions, args.references)
    scores = score_captions(predictions, [[reference] for reference in references])
    result = {
        "metrics": scores.metrics,
        "intervals": bootstrap(scores.statistics),
        "n": len(predictions),
        "signature": scores.signature,
    }
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result, indent=2))
    _other_scores(args, predictions, references, args.predictions, ids, args.out)


def _other_scores(
    args: argparse.Namespace,
    predictions: list[str],
    references: list[str],
    submission: Path,
    ids: list[str],
    out: Path | None,
) -> None:
    """With --protocol imageclef: print, and add to `out`, the organisers' scores, and what a submission lacks."""
    if args.protocol != "imageclef":
        return
    from medcap.evaluation.imageclef import check_submission, score_imageclef
    from medcap.training.run import write_json

    scored = score_imageclef(predictions, references, bertscore=args.bertscore)
    problems = check_submission(submission, ids)
    result = {"metrics": scored["metrics"], "signature": scored["signature"], "submission": problems or "valid"}
    if out is not None:
        write_json(out, {**json.loads(out.read_text(encoding="utf-8")), "imageclef": result})
    print(json.dumps({"imageclef": result}, indent=2, ensure_ascii=False))


def _compare(args: argparse.Namespace) -> None:
    from medcap.evaluation.compare import compare
    from medcap.evaluation.report import differences_text, text_table

    comparison = compare(args.folders, args.out)
    print(text_table(comparison["systems"]))
    print(f"\n{differences_text(comparison['tests'])}\n{args.out / 'comparison.md'} has the intervals")


def _caption(args: argparse.Namespace) -> None:
    from medcap.inference import caption_files

    lines = caption_files(_captioner(args), args.images, batch_size=args.batch_size, frame=args.frame)
    if args.out is None:
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    part = args.out.with_name(args.out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        part.replace(args.out)
    finally:
        part.unlink(missing_ok=True)


def _publish(args: argparse.Namespace) -> None:
    from medcap.publish.epochs import evaluation_of, next_release, push_run
    from medcap.publish.hub import build_release
    from medcap.publish.push import Destination, check_access

    if args.merge or args.onnx or args.space:
        print(_publish_folder(args))
        return
    to = None
    if args.repo_id is not None:
        to = Destination(args.repo_id, private=not args.public, overwrite=args.overwrite)
        to = replace(to, repo_id=check_access(to))  # before anything is written for it
    release = build_release(
        args.run_dir,
        args.to or next_release(args.run_dir),
        evaluation=args.evaluation or evaluation_of(args.run_dir),
        comparison=args.comparison,
        base=args.base,
        repo_id=to.repo_id if to else None,
    )
    print(push_run(args.run_dir, release, to) if to else release)


def _publish_folder(args: argparse.Namespace) -> Path:
    """What is published in another form than as an adapter: a folder, which is not pushed."""
    from medcap.publish.epochs import evaluation_of
    from medcap.publish.merge import build_merged
    from medcap.publish.onnx import build_onnx
    from medcap.publish.space import build_space
    from medcap.recipe import RecipeError

    build = build_merged if args.merge else build_onnx if args.onnx else build_space
    if args.to is None:
        raise RecipeError("--merge, --onnx and --space make a folder: give --to DIR, not --repo-id")
    evaluation = args.evaluation or evaluation_of(args.run_dir)
    return build(args.run_dir, args.to, evaluation=evaluation, comparison=args.comparison, base=args.base)


if __name__ == "__main__":
    main()
