"""Comparison of evaluations on the same images: paired tests of every two systems, and pooling over seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from medcap.evaluation.csv_files import check_same_ids, read_scores
from medcap.evaluation.result import Comparison, EvaluationResult, PairedDifference, SeedPool, SystemScores
from medcap.evaluation.verdict import paired_differences
from medcap.logs import named_errors
from medcap.metrics.statistics import Statistics, summarize_runs

logger = logging.getLogger(__name__)


def compare(folders: Sequence[Path], out: Path, overwrite: bool = False) -> Comparison:
    """Compare the evaluations in `folders`, and the baselines of the first one that has any; write comparison.json.

    Each pair of systems is tested on the same images (`paired_test`). Runs that differ only in the seed are pooled.
    Different decoding is allowed, with a warning.

    Raises:
        FileExistsError: `out` holds a comparison of other systems or data, and `overwrite` is false.
        ValueError: A folder has no metrics.json or scores.csv, images differ, or two systems have the same name.
    """
    with named_errors(", ".join(map(str, folders))):
        results = [_read(folder) for folder in folders]
        _check_same_images(folders, results)
        names = [result.name for result in results]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two systems are called {repeated[0]!r}: evaluate one of them again with another --name")
        systems = _systems(results, folders)
        if not overwrite:
            _refuse_other(out, [system for system, _ in systems])
        tests = _tests({system.name: folder / "scores.csv" for system, folder in systems})
        comparison = Comparison(systems=[system for system, _ in systems], tests=tests, seeds=_seeds(results))
    out.mkdir(parents=True, exist_ok=True)
    for name in ("comparison.md", "comparison.html"):
        (out / name).unlink(missing_ok=True)  # of an earlier comparison
    comparison.write(out / "comparison.json")
    return comparison


def system_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder with predictions.csv and scores.csv of each system of `compare`, by name and in its order."""
    return {system.name: folder for system, folder in _systems([_read(folder) for folder in folders], folders)}


def _systems(results: Sequence[EvaluationResult], folders: Sequence[Path]) -> list[tuple[SystemScores, Path]]:
    """Return the evaluated systems and the baselines of the first evaluation that has any, with their folders."""
    evaluated = list(zip(results, folders, strict=True))
    first, folder = next((pair for pair in evaluated if pair[0].baselines), evaluated[0])
    baselines = [(row, folder / "baselines" / name) for name, row in first.baselines.items()]
    return [*((_system(result), own) for result, own in evaluated), *baselines]


def _refuse_other(out: Path, systems: Sequence[SystemScores]) -> None:
    if not (path := out / "comparison.json").exists():
        return
    try:
        before = _names_and_data(Comparison.read(path).systems)
    except ValueError:  # of another version
        before = []
    if before != _names_and_data(systems):
        names = ", ".join(name for name, _ in before) or "unknown systems"
        raise FileExistsError(
            f"{path} is a comparison of other systems or data ({names}): name another --out, or replace it with "
            "--overwrite"
        )


def _names_and_data(systems: Sequence[SystemScores]) -> list[tuple[str, str | None]]:
    return [(system.name, system.signature.get("data") if system.signature else None) for system in systems]


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


def _system(result: EvaluationResult) -> SystemScores:
    return SystemScores(**{item.name: getattr(result, item.name) for item in fields(SystemScores)})


def _tests(paths: Mapping[str, Path]) -> list[PairedDifference]:
    """Test each pair of systems by metric; `paths` are scores.csv by system."""
    scores = {name: read_scores(path) for name, path in paths.items()}
    ids, groups, _ = next(iter(scores.values()))
    first_path = next(iter(paths.values()))
    for name, (own_ids, _, _) in scores.items():
        check_same_ids(own_ids, paths[name], ids, first_path)
    statistics = {name: _reorder(ids, own_ids, own) for name, (own_ids, _, own) in scores.items()}
    tests: list[PairedDifference] = []
    pairs = list(combinations(statistics, 2))
    for first, second in tqdm(pairs, desc="tests", unit="pair", disable=len(pairs) < 2):
        tests += paired_differences((first, second), (statistics[first], statistics[second]), groups)
    return tests


def _reorder(ids: Sequence[str], own_ids: Sequence[str], statistics: Statistics) -> Statistics:
    rows = {image_id: row for row, image_id in enumerate(own_ids)}
    return statistics.rows([rows[image_id] for image_id in ids])


def _seeds(results: Sequence[EvaluationResult]) -> list[SeedPool]:
    """Pool the evaluations whose recipes differ only in the seed."""
    runs: dict[str, list[tuple[int | None, EvaluationResult]]] = {}
    for result in results:
        if result.recipe is not None:
            runs.setdefault(result.recipe.hash, []).append((result.recipe.seed, result))
    return [
        SeedPool(
            systems=[result.name for _, result in same],
            seeds=[seed for seed, _ in same],
            metrics=summarize_runs([result.metrics for _, result in same]),
        )
        for same in runs.values()
        if len({seed for seed, _ in same}) > 1
    ]
