"""Every pitfall of benchmarks/traps.py changes a training step."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import TrainerCallback

from medcap.data.captions import CaptionCollator
from medcap.data.images import ImageTransform
from medcap.modeling.families import blip
from medcap.phantom import TINY_BASE
from medcap.recipe import read_recipe
from medcap.training import setup
from medcap.training.trainer import CaptionTrainer

sys.path.insert(0, str(ROOT / "benchmarks"))
import traps

PATCHED = (
    (ImageTransform, "__call__"), (blip, "resize_positions"), (blip.Blip, "first_token_id"),
    (CaptionCollator, "__call__"), (CaptionTrainer, "compute_loss"),
)  # fmt: skip
TRAINED = [
    name for name, trap in traps.VARIANTS.items() if trap.symptom and not trap.adapter_of and name != "original"
]  # fmt: skip


class GradientNorm(TrainerCallback):
    value = 0.0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        self.value = torch.stack(norms).norm().item()


def first_step(name: str, data: Path, folder: Path) -> tuple[float, float]:
    """Return loss and gradient norm of the first training step of a variant."""
    for patch in traps.VARIANTS[name].patches:
        patch()
    argv = ["--config", str(ROOT / "recipes/phantom/4-epochs.yaml"), "--data_dir", str(data), "--feature_cache", "off"]
    argv += ["--model_name_or_path", str(TINY_BASE), "--output_dir", str(folder), "--use_cpu", "true"]
    argv += ["--per_device_train_batch_size", "8", "--max_steps", "1", "--logging_steps", "1", "--lora_dropout", "0"]
    recipe = read_recipe([*argv, *traps.VARIANTS[name].argv])
    recipe.training.eval_strategy = recipe.training.save_strategy = "no"
    torch.manual_seed(0)
    adapted = setup.make_model(recipe, torch.float32)
    rows = setup.load_splits(recipe)
    captions = setup.tokenize_captions(recipe, rows, adapted.family)
    trainer = setup.make_trainer(recipe, rows, captions, adapted, None, None, None)
    norm = GradientNorm()
    trainer.add_callback(norm)
    trainer.train()
    return next(line["loss"] for line in trainer.state.log_history if "loss" in line), norm.value


@pytest.fixture(scope="module")
def controls(phantoms, tmp_path_factory) -> dict[str, tuple[float, float]]:
    names = {traps.VARIANTS[name].control for name in TRAINED}
    return {name: first_step(name, phantoms, tmp_path_factory.mktemp(name)) for name in names}


@pytest.mark.parametrize("name", TRAINED)
def test_a_pitfall_changes_the_first_step(name, controls, phantoms, tmp_path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for owner, attribute in PATCHED:  # recorded, to be restored
            patch.setattr(owner, attribute, getattr(owner, attribute))
        step = first_step(name, phantoms, tmp_path)
    assert step != pytest.approx(controls[traps.VARIANTS[name].control], rel=1e-2)


def test_a_variant_without_pitfall_has_the_same_first_step_again(controls, phantoms, tmp_path) -> None:
    assert first_step("correct", phantoms, tmp_path) == pytest.approx(controls["correct"], rel=1e-5)
