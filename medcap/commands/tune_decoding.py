"""`medcap tune-decoding`: choose the generation settings of a run on its validation split."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcap.commands.options import (
    GENERATION_OPTIONS,
    add_command,
    json_option,
    layout_from_args,
    overwrite_option,
    print_result,
)

if TYPE_CHECKING:
    from medcap.evaluation.decoding import Tuning
    from medcap.evaluation.split import Split
    from medcap.inference import Captioner

GRID: dict[str, list[Any]] = {
    "num_beams": [1, 3, 5],
    "length_penalty": [0.5, 1.0, 2.0],
    "no_repeat_ngram_size": [0, 4],
    "min_new_tokens": [0, 8],
}


def add_commands(commands: Any) -> None:
    """Add `tune-decoding`."""
    tune = add_command(
        commands,
        "tune-decoding",
        _tune,
        "choose generation settings on the validation split",
        "medcap tune-decoding runs/mine --num_beams 1 3 5",
    )
    tune.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished training run")
    tune.add_argument("--data", help="data set (default: that of the run)")
    tune.add_argument("--base", help="base of the adapter, if its recorded name cannot be loaded")
    tune.add_argument("--metric", help="metric to maximize, not METEOR (default: cider)", default="cider")
    tune.add_argument("--max_eval_samples", type=int, help="use only N images (default: as in the run's recipe)")
    tune.add_argument("--batch_size", type=int, help="images per batch (default: CPU 16, GPU as many as fit)")
    tune.add_argument("--feature_cache", default="auto", help="cache of image features: auto, off, or a folder")
    tune.add_argument(
        "--any_gain", "--any-gain", action="store_true",
        help="write the best setting even if it is not significantly better than the recipe's",
    )  # fmt: skip
    json_option(tune)
    overwrite_option(tune, "the captions of other weights or images")
    group = tune.add_argument_group("settings", "values to try; every combination is tried, and the recipe's setting")
    for name, kind in GENERATION_OPTIONS.items():
        default = " ".join(map(str, GRID[name])) if name in GRID else "as in the recipe"
        group.add_argument(f"--{name}", type=kind, nargs="+", metavar="VALUE", help=f"(default: {default})")


def _tune(args: argparse.Namespace) -> None:
    from medcap.evaluation.decoding import RESULT, TUNED_METRICS, grid_settings, tune_decoding, write_settings
    from medcap.io import read_json
    from medcap.modeling.adapter import adapter_recipe, trained_folder
    from medcap.recipe import GenerationArguments, RecipeError, check_values

    if args.metric not in TUNED_METRICS:
        raise RecipeError(f"--metric is {args.metric!r}; allowed are {', '.join(TUNED_METRICS)}")
    trained = trained_folder(args.folder)
    recipe = adapter_recipe(str(trained))
    if not recipe:
        raise RecipeError(f"{args.folder} is no finished run: it has no {trained.name}/recipe.yaml")
    grid = {**GRID, **{name: getattr(args, name) for name in GENERATION_OPTIONS if getattr(args, name) is not None}}
    for name, values in grid.items():
        for value in values:
            check_values({name: value})
    own = {name: recipe[name] for name in vars(GenerationArguments()) if name in recipe}
    settings = grid_settings(GenerationArguments(**own), grid)
    captioner, split = _load(args, recipe, str(trained))
    out = args.folder / "decoding"
    tuning = tune_decoding(
        captioner, split, out, settings, metric=args.metric, batch_size=args.batch_size, any_gain=args.any_gain,
        overwrite=args.overwrite,
    )  # fmt: skip
    is_changed = write_settings(captioner, trained, tuning.chosen)
    lines = [
        _text(tuning),
        f"{trained / 'generation_config.json'}: {tuning.chosen.name}, {'written' if is_changed else 'unchanged'}",
        f"All settings: {out / 'decoding.csv'}. Only the test split shows what tuning gained.",
    ]
    print_result(args, read_json(out / RESULT), "\n".join(lines))


def _load(args: argparse.Namespace, recipe: Mapping[str, Any], trained: str) -> tuple[Captioner, Split]:
    """Load the model, and the validation images that the run's recipe selects."""
    from medcap.data.selection import Selection
    from medcap.evaluation.split import load_split
    from medcap.inference import load_captioner

    captioner = load_captioner(trained, base=args.base)
    names = ("max_broken", "license_filter", "dedupe", "exclude_leaks")
    split = load_split(
        args.data or recipe["data_dir"],
        "valid",
        layout=layout_from_args(args, recipe),
        selection=Selection(**{name: recipe[name] for name in names if name in recipe}),
        max_eval_samples=args.max_eval_samples or recipe.get("max_eval_samples"),
    )
    return captioner.with_cache(args.feature_cache, len(split.rows)), split


def _text(tuning: Tuning) -> str:
    """Return the table of all settings, best first, and the decision."""
    from medcap.reporting.tables import aligned

    rows = [["setting", tuning.metric, "95 % interval", "difference", "p"]]
    for trial in sorted(tuning.trials, key=lambda each: -each.score):
        low, high = trial.interval
        test = (
            ["the recipe's", ""]
            if trial.test is None
            else [f"{trial.test['difference']:+.4f}", f"{trial.test['p']:.4f}"]
        )
        rows.append([trial.name, f"{trial.score:.4f}", f"{low:.4f} to {high:.4f}", *test])
    kept = tuning.chosen is not tuning.winner
    reason = (
        ["the recipe's setting is kept, because the difference is not significant (see --any_gain)"] if kept else []
    )
    return "\n".join([*aligned(rows), "", tuning.describe(), *reason])
