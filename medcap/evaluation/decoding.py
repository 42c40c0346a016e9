"""The choice of generation settings on the validation split, which `medcap tune-decoding` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medcap.data.tables import read_column
from medcap.evaluation.csv_files import write_predictions
from medcap.evaluation.folder import content
from medcap.evaluation.scoring import describe_decoding
from medcap.evaluation.split import Split
from medcap.evaluation.verdict import SIGNIFICANT
from medcap.inference import Captioner, caption_dataset, check_generation
from medcap.io import read_json, unguard, write_csv, write_json, write_text
from medcap.locks import lock_folder
from medcap.metrics.coco import tokenize
from medcap.metrics.statistics import METRICS, Statistics, bootstrap, caption_statistics, paired_test
from medcap.modeling.adapter import GENERATION
from medcap.modeling.generation import extra_settings
from medcap.neighbors import with_consensus
from medcap.recipe import GenerationArguments

TUNED_METRICS = tuple(name for name in METRICS if name != "meteor")  # METEOR takes a minute for 1,000 captions
IDENTITY, RESULT, TABLE = "options.json", "decoding.json", "decoding.csv"
COLUMNS = ("setting", "metric", "score", "low", "high", "difference", "p", "difference_low", "difference_high")


@dataclass(frozen=True)
class Trial:
    """The score of one setting on the validation split.

    Attributes:
        name: As in the `decoding` of a signature.
        settings: Keys of `GenerationArguments`.
        score: Of the metric.
        interval: Its 95 % bootstrap interval.
        test: Paired test against the recipe's setting: difference, p, low, high; None for that setting itself.
    """

    name: str
    settings: dict[str, Any]
    score: float
    interval: tuple[float, float]
    test: dict[str, float] | None


@dataclass(frozen=True)
class Tuning:
    """All settings, the recipe's first, and the best one; of equal ones that with the fewest changes."""

    metric: str
    n: int
    trials: list[Trial]
    any_gain: bool = False

    @property
    def chosen(self) -> Trial:
        """The winner if it is significantly better than the recipe's setting, or with `any_gain`; else that setting.

        On few images the best of many settings is often best by chance, and worse on others (docs/decoding.md).
        """
        test = self.winner.test
        return self.winner if test is not None and (self.any_gain or test["p"] < SIGNIFICANT) else self.trials[0]

    @property
    def winner(self) -> Trial:
        """The setting with the highest score. It is never below the recipe's, which is one of them."""
        return max(self.trials, key=lambda trial: (round(trial.score, 9), -self._changes(trial)))

    def _changes(self, trial: Trial) -> int:
        """Return the number of keys that differ from the recipe's."""
        return sum(value != trial.settings[name] for name, value in self.trials[0].settings.items())

    def describe(self) -> str:
        """Return the comparison of the winner with the recipe's setting in one line."""
        recipe, winner = self.trials[0], self.winner
        if winner.test is None:
            n = len(self.trials)
            return f"the recipe's setting {recipe.name} is the best of {n}: {self.metric} {recipe.score:.4f}"
        test = winner.test
        significance = "significant" if test["p"] < SIGNIFICANT else "not significant"
        return (
            f"{winner.name} is the best of {len(self.trials)}: {self.metric} {winner.score:.4f}, the recipe's "
            f"{recipe.name} {recipe.score:.4f}; difference {test['difference']:+.4f} ({test['low']:+.4f} to "
            f"{test['high']:+.4f}), p {test['p']:.4f}, {significance}"
        )


def grid_settings(recipe: GenerationArguments, grid: Mapping[str, Sequence[Any]]) -> list[GenerationArguments]:
    """Return the recipe's setting and every other one of the grid, each once.

    Raises:
        RecipeError: A setting contradicts itself.
    """
    found, default = {recipe: None}, GenerationArguments()
    consensus = {name: value for name, value in vars(recipe).items() if name.startswith("rerank_")}
    for values in product(*grid.values()):
        settings = replace(recipe, **dict(zip(grid, values, strict=True)))
        if settings.num_beams == 1:
            settings = replace(settings, length_penalty=default.length_penalty, rerank="none")
        if settings.rerank == "none":
            settings = replace(settings, **{**consensus, "rerank_candidates": None})
        check_generation(vars(settings))
        found[settings] = None
    return list(found)


def tune_decoding(
    captioner: Captioner,
    split: Split,
    out: Path,
    settings: Sequence[GenerationArguments],
    *,
    metric: str = "cider",
    batch_size: int | None = None,
    any_gain: bool = False,
    overwrite: bool = False,
) -> Tuning:
    """Caption `split` with each of `settings`, the recipe's first, and score the captions.

    The captions of a setting are in `out`/NAME.csv as soon as they are complete, and are not generated again.
    decoding.json and decoding.csv have the scores of all settings.

    Raises:
        FileExistsError: `out` has captions of other weights or images, and `overwrite` is false.
        FolderInUseError: Another process writes it.
    """
    with lock_folder(out):
        _prepare(out, {**content(captioner, split), "precision": captioner.precision}, overwrite)
        references, scored = tokenize(split.references), list[tuple[str, Statistics]]()
        for name, captions in _captions(captioner, split, out, settings, batch_size):
            scored.append((name, caption_statistics(tokenize(captions), [[text] for text in references])))
            tqdm.write(f"{name}: {metric} {scored[-1][1].corpus()[metric][0]:.4f}", sys.stderr)
        trials = [_trial(name, vars(each), own, scored[0][1], split, metric)
                  for each, (name, own) in zip(settings, scored, strict=True)]  # fmt: skip
        tuning = Tuning(metric, len(split.rows), trials, any_gain)
        _write(out, tuning)
    return tuning


def _prepare(out: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Remove captions of other weights or images if `overwrite`, else refuse them."""
    path = out / IDENTITY
    if path.exists() and read_json(path) != identity:
        if not overwrite:
            raise FileExistsError(f"{out} has captions of other weights or images: replace them with --overwrite")
        for old in (*out.glob("*.csv"), *out.glob("*.json")):
            old.unlink()
    write_json(path, identity)


def _captions(
    captioner: Captioner, split: Split, out: Path, settings: Sequence[GenerationArguments], batch_size: int | None
) -> Iterator[tuple[str, list[str]]]:
    """Yield name and captions of each setting, generated or read."""
    extra = extra_settings(captioner.generation_config.to_dict())
    for each in tqdm(settings, desc="settings", unit="setting"):
        config = captioner.family.make_generation_config(**{**extra, **vars(each)})
        name = describe_decoding(config)
        path = out / f"{name}.csv"
        if not path.exists():
            own = with_consensus(
                replace(captioner, generation_config=config, consensus=None), split.training, batch_size
            )
            captions, _ = caption_dataset(own, split.rows, batch_size=batch_size)
            write_predictions(path, dict(zip(split.ids, captions, strict=True)))
        read = {unguard(image): unguard(text) for image, text in read_column(path, "Caption").items()}
        yield name, [read[image] for image in split.ids]


def _trial(
    name: str, settings: dict[str, Any], own: Statistics, recipe: Statistics, split: Split, metric: str
) -> Trial:
    test = None if own is recipe else paired_test(own, recipe, split.groups)[metric]
    return Trial(name, settings, float(own.corpus()[metric][0]), bootstrap(own, split.groups)[metric], test)


def _write(out: Path, tuning: Tuning) -> None:
    """Write decoding.json and decoding.csv."""
    rows = [
        (trial.name, tuning.metric, trial.score, *trial.interval, *_differences(trial.test)) for trial in tuning.trials
    ]
    write_csv(out / TABLE, COLUMNS, rows)
    found = {"metric": tuning.metric, "split": "valid", "n": tuning.n, "decision": tuning.describe()}
    systems = {"recipe": vars(tuning.trials[0]), "winner": vars(tuning.winner), "chosen": tuning.chosen.name}
    write_json(out / RESULT, {**found, **systems, "settings": list(map(vars, tuning.trials))})


def _differences(test: Mapping[str, float] | None) -> list[float | str]:
    return [""] * 4 if test is None else [test[name] for name in ("difference", "p", "low", "high")]


def write_settings(captioner: Captioner, folder: Path, chosen: Trial) -> bool:
    """Write a setting into the generation settings of the adapter `folder`; return whether they changed."""
    extra = extra_settings(captioner.generation_config.to_dict())
    config = captioner.family.make_generation_config(**{**extra, **chosen.settings})
    text, path = config.to_json_string(), folder / GENERATION
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True
