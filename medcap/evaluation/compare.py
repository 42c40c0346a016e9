"""Comparison of evaluations on the same images: paired tests of every two systems, and pooling over seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from medcap.evaluation.result import Comparison, EvaluationResult, PairedDifference, SeedPool, SystemScores
from medcap.evaluation.scores_file import read_scores
from medcap.evaluation.scoring import SIGNIFICANT
from medcap.logs import named_errors
from medcap.metrics.statistics import Statistics, paired_test, pool

logger = logging.getLogger(__name__)


def compare(folders: Sequence[Path], out: Path) -> Comparison:
    """Compare the evaluations in `folders`, with the baselines of the first one that has any; write comparison.json.

    Every two systems are tested on the same images (`paired_test`); systems whose recipes differ in the seed alone
    are pooled. A difference in decoding is allowed, with a warning.

    Raises:
        ValueError: A folder has no metrics.json or scores.csv, the evaluations are of different images, or two
            systems have one name.
    """
    with named_errors(", ".join(map(str, folders))):
        results = [_read(folder) for folder in folders]
        _check_same_images(folders, results)
        systems = [_system(result) for result in results]
        _check_names([system.name for system in systems])
        paths = {system.name: folder for system, folder in zip(systems, folders, strict=True)}
        owner = next((number for number, result in enumerate(results) if result.baselines), 0)
        for name, row in results[owner].baselines.items():
            systems.append(row)
            paths[name] = folders[owner] / "baselines" / name
        comparison = Comparison(systems=systems, tests=_tests(paths), seeds=_seeds(results))
    out.mkdir(parents=True, exist_ok=True)
    comparison.write(out / "comparison.json")
    return comparison


def _read(folder: Path) -> EvaluationResult:
    for name in ("metrics.json", "scores.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: create it with medcap evaluate --out {folder}")
    return EvaluationResult.read(folder / "metrics.json")


def _check_same_images(folders: Sequence[Path], results: Sequence[EvaluationResult]) -> None:
    data, n = _pair(results[0], "data"), results[0].n
    for folder, result in zip(folders, results, strict=True):
        if (_pair(result, "data"), result.n) != (data, n):
            raise ValueError(
                f"{folder} scored {result.n} images of data {_pair(result, 'data')}, {folders[0]} {n} of {data}; "
                "scores of different images cannot be compared: evaluate both on one split"
            )
    for key in ("decoding", "text"):
        if len({_pair(result, key) for result in results}) > 1:
            logger.warning("the systems differ in %s: see the signatures in comparison.json", key)


def _pair(result: EvaluationResult, key: str) -> str | None:
    return result.signature.get(key) if result.signature else None


def _check_names(names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two systems are called {twice[0]!r}: evaluate one of them again with another --name")


def _system(result: EvaluationResult) -> SystemScores:
    return SystemScores(**{item.name: getattr(result, item.name) for item in fields(SystemScores)})


def _tests(paths: Mapping[str, Path]) -> list[PairedDifference]:
    """Test every two systems, by metric."""
    read = {name: read_scores(path / "scores.csv") for name, path in paths.items()}
    ids, groups, _ = next(iter(read.values()))
    statistics = {name: _reorder(ids, scores[0], scores[2]) for name, scores in read.items()}
    tests = []
    pairs = list(combinations(statistics, 2))
    for first, second in tqdm(pairs, desc="tests", unit="pair", disable=len(pairs) < 2):
        for metric, test in paired_test(statistics[first], statistics[second], groups).items():
            significant = test["p"] < SIGNIFICANT
            tests.append(PairedDifference(first=first, second=second, metric=metric, **test, significant=significant))
    return tests


def _reorder(ids: Sequence[str], own_ids: Sequence[str], statistics: Statistics) -> Statistics:
    rows = {image_id: row for row, image_id in enumerate(own_ids)}
    return statistics.rows([rows[image_id] for image_id in ids])


def _seeds(results: Sequence[EvaluationResult]) -> list[SeedPool]:
    """Pool the evaluations whose recipes differ in the seed alone."""
    runs: dict[str, list[tuple[int | None, EvaluationResult]]] = {}
    for result in results:
        if result.recipe is not None:
            runs.setdefault(result.recipe.hash, []).append((result.recipe.seed, result))
    return [
        SeedPool(
            systems=[result.name for _, result in same],
            seeds=[seed for seed, _ in same],
            metrics=pool([result.metrics for _, result in same]),
        )
        for same in runs.values()
        if len({seed for seed, _ in same}) > 1
    ]
