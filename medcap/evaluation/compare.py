"""Evaluations side by side: the table of a project, with the rows beside it that need no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcap.evaluation.report import markdown_table
from medcap.training.run import write_json

logger = logging.getLogger(__name__)


def compare(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put the evaluations in `folders` into one table; writes comparison.json and comparison.md into `out`.

    Raises ValueError for a folder without metrics.json, and for evaluations of other images: their numbers must not
    stand in one table. Other decoding is allowed and said.
    """
    results = [_read(folder) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        if (here := _of(result, "data"), result["n"]) != (first := _of(results[0], "data"), results[0]["n"]):
            raise ValueError(
                f"{folder} scored {result['n']} images of data {here}, {folders[0]} {results[0]['n']} of {first}; "
                "numbers of different images cannot be compared: evaluate both on one split"
            )
    if len({_of(result, "decoding") for result in results}) > 1:
        logger.warning("the systems were decoded with different settings: see the signatures in comparison.json")
    systems = [_system(result) for result in results]
    baselines: dict[str, Any] = next((result["baselines"] for result in results if result["baselines"]), {})
    systems += [{"name": name, **row} for name, row in baselines.items()]
    names = [system["name"] for system in systems]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two systems are called {twice[0]!r}: evaluate one of them again with another --name")
    comparison = {"systems": systems, "tests": []}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", comparison)
    (out / "comparison.md").write_text(markdown_table(systems), encoding="utf-8")
    return comparison


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no metrics.json: make it with medcap evaluate --out {folder}")
    return json.loads(path.read_text(encoding="utf-8"))


def _of(result: dict[str, Any], key: str) -> str | None:
    """One value of a signature."""
    return dict(pair.partition(":")[::2] for pair in result["signature"].split("|")).get(key)


def _system(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("name", "n", "metrics", "findings", "captions", "signature") if key in result}
