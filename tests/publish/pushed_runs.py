"""Training runs that push to the local Hub server, for test_epoch_releases.py."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from conftest import write_recipe

TOKEN = "oidc-my-own-token-12345"
BASE, REPO = "someone/tiny-base", "someone/captions"
EPOCHS, STEPS = 4, 3  # steps of an epoch: 12 images in batches of 4


@dataclass
class TrainingRun:
    """Folder, recipe, exit status and output of a training run."""

    folder: Path
    recipe: Path
    status: int
    stdout: str
    stderr: str


def files(folder):
    """Return {name: content} of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reset(hub, tiny_base):
    """Reset the Hub, and add the user's token and the base."""
    hub.reset()
    hub.add_token(TOKEN)
    hub.add_repository(BASE, files(tiny_base))


def call(main, *args):
    """Call a `main` function in this process and return status, stdout and stderr."""
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(list(map(str, args)))
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def make_recipe(folder, phantoms, **keys):
    common = {
        "data_dir": str(phantoms), "model_name_or_path": BASE, "output_dir": str(folder / "run"), "image_size": 48,
        "lora_target_modules": "text", "lora_r": 8, "num_train_epochs": EPOCHS, "precision": "fp32",
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 0.02, "num_beams": 2,
        "max_new_tokens": 16, "use_cpu": True, "seed": 5, "push_to_hub": True, "hub_model_id": REPO,
        # selects the epoch with the longest captions, which is not the last one
        "metric_for_best_model": "length_ratio", "greater_is_better": True,
    }  # fmt: skip
    return write_recipe(folder / "recipe.yaml", **{**common, **keys})


def train(train_script, folder, phantoms, **keys):
    recipe = make_recipe(folder, phantoms, **keys)
    return TrainingRun(folder / "run", recipe, *call(train_script.main, "--config", recipe))
