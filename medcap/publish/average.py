"""Write the average of adapters, or of a run's best epochs, as an adapter that is used and published like others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from peft.utils import CONFIG_NAME
from safetensors.torch import save_file

from medcap import __version__
from medcap.hub import local_model
from medcap.io import file_digest, new_folder, read_json, write_json
from medcap.modeling.adapter import AVERAGE, adapter_recipe, image_size_of
from medcap.modeling.average import Adapter, average
from medcap.modeling.load import check_model_name, model_errors
from medcap.publish.release import FROM_ADAPTER
from medcap.publish.run_paths import WEIGHTS
from medcap.recipe import RecipeError, read_recipe
from medcap.reporting.plots import read_curve
from medcap.training.checkpoints import STATE, checkpoints, find_damage, step_of


def write_average(names: Sequence[str], out: Path, weights: Sequence[float] | None = None) -> Path:
    """Write the average of adapters into the new folder `out`, and return it.

    Processor, generation settings and recipe are those of the first adapter; for a checkpoint, those of its run.

    Args:
        names: Folders or Hub names, at least two.
        out: New or empty folder.
        weights: Of each adapter, above 0; divided by their sum. Default: equal.

    Raises:
        RecipeError: There are too few adapters, or the weights do not suit them.
        FileExistsError: `out` is not empty.
        ValueError: An adapter cannot be averaged, or they have different bases, layers, image sizes or prompts.
    """
    fractions = _fractions(names, weights)
    folders = [_local_folder(name) for name in names]
    described = [_described_in(folder) for folder in folders]
    adapters = [Adapter.read(folder, name) for folder, name in zip(folders, names, strict=True)]
    _check_inputs(names, described)
    averaged, config = average(adapters, fractions)
    with new_folder(out) as part:
        save_file(averaged, part / WEIGHTS, {"format": "pt"})
        write_json(part / CONFIG_NAME, config)
        for name in (*FROM_ADAPTER, "recipe.yaml"):
            if name not in (WEIGHTS, AVERAGE) and (described[0] / name).is_file():
                (part / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(described[0] / name, part / name)
        write_json(part / AVERAGE, _origin(names, folders, fractions))
    return out


def best_checkpoints(run: Path, n: int) -> list[str]:
    """Return the `n` checkpoints of a run with the best validation metric, the best first; of equal ones the earlier.

    The metric is `metric_for_best_model` of the recipe.

    Raises:
        RecipeError: `run` is not a finished run, or `n` is below 2.
        ValueError: The run has kept fewer evaluated checkpoints, or one of them is damaged.
    """
    if n < 2:
        raise RecipeError(f"--best is {n}; an average needs 2 epochs or more")
    if not (run / "recipe.yaml").is_file() or not (run / "adapter").is_dir():
        raise RecipeError(f"--best needs the folder of a finished run with an adapter, which {run} is not")
    args = read_recipe(["--config", str(run / "recipe.yaml")]).training
    metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    scores = {line["step"]: line[metric] for line in read_curve(run / "metrics.jsonl") if metric in line}
    kept = [path for path in reversed(checkpoints(run)) if step_of(path) in scores]
    if len(kept) < n:
        raise ValueError(
            f"{run} has {len(kept)} checkpoints with {metric}, --best needs {n}: lower it, or train with a higher "
            "save_total_limit"
        )
    best = sorted(kept, key=lambda path: scores[step_of(path)], reverse=bool(args.greater_is_better))[:n]
    for path in best:
        if damage := find_damage(path):
            raise ValueError(f"{path} is damaged ({damage}): name other checkpoints instead of --best")
    return [str(path) for path in best]


def _fractions(names: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """Return weights with the sum 1; RecipeError if they do not suit the adapters."""
    if len(names) < 2:
        raise RecipeError(f"an average needs 2 adapters or more, got {names[0]}; for a run give --best N")
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise RecipeError(f"--weights has {len(weights)} numbers for {len(names)} adapters: give one for each")
    if wrong := [weight for weight in weights if not 0 < weight <= 1e6]:
        raise RecipeError(f"--weights has {wrong[0]:g}; allowed is above 0 and at most 1,000,000")
    return [weight / sum(weights) for weight in weights]


def _local_folder(name: str) -> Path:
    if (Path(name) / STATE).is_file():  # a checkpoint also holds files that are no model
        return Path(name)
    with model_errors(name):
        return local_model(check_model_name(name))


def _described_in(folder: Path) -> Path:
    """Return the folder with recipe and generation settings: of a checkpoint, the adapter of its run."""
    return folder.parent / "adapter" if (folder / STATE).is_file() else folder


def _check_inputs(names: Sequence[str], described: Sequence[Path]) -> None:
    """Raise ValueError if adapters were trained with different image sizes or prompts."""
    for what in ("image size", "prompt"):
        values = [
            image_size_of(str(folder)) if what == "image size" else adapter_recipe(str(folder)).get("prompt") or ""
            for folder in described
        ]
        for name, value in zip(names, values, strict=True):
            if value != values[0]:
                raise ValueError(f"{name} was trained with {what} {value!r}, {names[0]} with {values[0]!r}")


def _origin(names: Sequence[str], folders: Sequence[Path], fractions: Sequence[float]) -> dict[str, object]:
    """Return the content of average.json, without paths of this machine."""
    adapters = [
        {
            "adapter": "/".join(folder.resolve().parts[-2:]) if Path(name).is_dir() else name,
            "weight": round(fraction, 6),
            "rank": read_json(folder / CONFIG_NAME)["r"],
            "sha256": file_digest(folder / WEIGHTS),
        }
        for name, folder, fraction in zip(names, folders, fractions, strict=True)
    ]
    return {"medcap": __version__, "adapters": adapters}
