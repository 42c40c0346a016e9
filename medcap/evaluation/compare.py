"""Evaluations side by side: the table of a project, which differences are real, and several seeds of one recipe."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medcap.evaluation.scores_file import read_scores
from medcap.evaluation.scoring import SIGNIFICANT
from medcap.io import write_json
from medcap.logs import named_errors
from medcap.metrics.statistics import Statistics, paired_test, pool
from medcap.reporting.tables import differences_table, intervals_table, seeds_table

logger = logging.getLogger(__name__)


def compare(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put the evaluations in `folders` into one table; writes comparison.json and comparison.md into `out`.

    Every two systems, baselines too, are tested on the same images (`paired_test`): `tests` holds a line for each
    pair and metric. Systems whose recipes differ in the seed alone are pooled in `seeds`.
    Raises ValueError for a folder without metrics.json, and for evaluations of other images: their numbers must not
    stand in one table. Other decoding is allowed and said.
    """
    with named_errors(", ".join(map(str, folders))):
        results = [_read(folder) for folder in folders]
        _check_images(folders, results)
        systems = [_system(result) for result in results]
        places = dict(zip((system["name"] for system in systems), folders, strict=True))
        if len(places) < len(systems):
            names = [system["name"] for system in systems]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two systems are called {twice!r}: evaluate one of them again with another --name")
        for name, row in _baselines(results).items():
            systems.append({"name": name, **row})
            places[name] = folders[_owner(results)] / "baselines" / name
        comparison = {"systems": systems, "tests": _tests(places), "seeds": _seeds(results)}
        shown = _markdown(comparison)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", comparison)
    (out / "comparison.md").write_text(shown, encoding="utf-8")
    return comparison


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file() or not (folder / "scores.csv").is_file():
        lacking = "scores.csv" if path.is_file() else "metrics.json"
        raise ValueError(f"{folder} holds no {lacking}: make it with medcap evaluate --out {folder}")
    return json.loads(path.read_text(encoding="utf-8"))


def _check_images(folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> None:
    for folder, result in zip(folders, results, strict=True):
        if (here := _of(result, "data"), result["n"]) != (first := _of(results[0], "data"), results[0]["n"]):
            raise ValueError(
                f"{folder} scored {result['n']} images of data {here}, {folders[0]} {results[0]['n']} of {first}; "
                "numbers of different images cannot be compared: evaluate both on one split"
            )
    for key in ("decoding", "surface"):
        if len({_of(result, key) for result in results}) > 1:
            logger.warning("the systems differ in %s: see the signatures in comparison.json", key)


def _of(result: Mapping[str, Any], key: str) -> str | None:
    """One value of a signature."""
    return dict(pair.partition(":")[::2] for pair in result["signature"].split("|")).get(key)


def _system(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("name", "n", "metrics", "intervals", "findings", "facts", "captions", "signature")
    return {key: result[key] for key in keys if key in result}


def _owner(results: Sequence[Mapping[str, Any]]) -> int:
    """The number of the first evaluation that has baselines; the first without any."""
    return next((number for number, result in enumerate(results) if result["baselines"]), 0)


def _baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return dict(results[_owner(results)]["baselines"])


def _tests(places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A line for each two systems and metric: the first's score minus the second's, its p and its interval."""
    read = {name: read_scores(place / "scores.csv") for name, place in places.items()}
    ids = next(iter(read.values()))[0]
    groups = next(iter(read.values()))[1]
    statistics = {name: _in_order(ids, *scores) for name, scores in read.items()}
    tests = []
    pairs = list(combinations(statistics, 2))
    for first, second in tqdm(pairs, desc="tests", unit="pair", disable=len(pairs) < 2):
        found = paired_test(statistics[first], statistics[second], groups)
        for metric, test in found.items():
            real = test["p"] < SIGNIFICANT
            tests.append({"first": first, "second": second, "metric": metric, **test, "significant": real})
    return tests


def _in_order(wanted: Sequence[str], ids: Sequence[str], groups: object, statistics: Statistics) -> Statistics:
    rows = {image_id: row for row, image_id in enumerate(ids)}
    return statistics.rows([rows[image_id] for image_id in wanted])


def _seeds(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of the evaluations whose recipes differ in the seed alone."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if result.get("recipe"):
            runs.setdefault(result["recipe"]["hash"], []).append(result)
    return [
        {
            "systems": [result["name"] for result in same],
            "seeds": [result["recipe"]["seed"] for result in same],
            "metrics": pool([result["metrics"] for result in same]),
        }
        for same in runs.values()
        if len({result["recipe"]["seed"] for result in same}) > 1
    ]


def _markdown(comparison: Mapping[str, Any]) -> str:
    systems, tests, seeds = comparison["systems"], comparison["tests"], comparison["seeds"]
    parts = [
        intervals_table(systems),
        f"{systems[0]['n']} images. In brackets 95 % bootstrap intervals (1,000 resamples of images, or of their "
        "articles or patients where the data names them).\n",
        "## Which differences are real\n",
        differences_table(tests),
        "The row's first system minus its second. (n.s.): no significant difference, p of .05 or more in a paired "
        "approximate-randomisation test with 10,000 trials on the same images. The values of p are not corrected for "
        "the number of tests.\n",
    ]
    if seeds:
        parts += ["## Several seeds of one recipe\n", seeds_table(seeds)]
    return "\n".join(parts)
