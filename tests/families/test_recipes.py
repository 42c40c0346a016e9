"""Every recipe for ROCOv2 trains, evaluates and saves a tiny checkpoint of its family."""

import contextlib
import io
import json

import pytest
import tiny_bases
from conftest import ROOT

FILES = sorted((ROOT / "recipes").glob("*-rocov2/*.yaml"))
RECIPES = [path.relative_to(ROOT / "recipes") for path in FILES if path.name != "space.yaml"]
BASES = {
    "vit-gpt2-rocov2": "vit-gpt2", "dinov2-gpt2-rocov2": "vit-gpt2", "blip2-opt-2.7b-rocov2": "blip2-opt",
    "smolvlm-256m-rocov2": "smolvlm", "qwen-vl-rocov2": "qwen2_5_vl", "medgemma-4b-rocov2": "gemma3",
}  # fmt: skip
# what a tiny checkpoint and a few phantom images allow; the tiny BLIP has images of 96 pixels
CHANGES = {
    "use_cpu": "true", "max_steps": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2,
    "dataloader_num_workers": 0, "max_train_samples": 2, "max_eval_samples": 2, "max_caption_tokens": 40,
    "max_new_tokens": 8, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_trains_a_checkpoint_of_its_family(recipe, train_script, tiny_base, phantoms, tmp_path):
    name = BASES.get(recipe.parts[0])
    base = tiny_bases.base(name) if name else tiny_base
    changes = {**CHANGES, "model_name_or_path": base, "data_dir": phantoms, "output_dir": tmp_path / "run"}
    changes |= {} if name else {"image_size": 96}
    changes |= {"train_fraction": 1} if recipe.name.startswith("seed") else {}
    if recipe.name == "scst.yaml":
        train(train_script, recipe.with_name("lora.yaml"), changes | {"output_dir": tmp_path / "start"})
        changes["init_adapter"] = tmp_path / "start" / "adapter"
    train(train_script, recipe, changes)
    weights = "model/model.safetensors" if recipe.name == "full.yaml" else "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).is_file()
    assert "eval_cider" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


def train(script, recipe, changes):
    """Train a recipe with changed keys."""
    arguments = [text for key, value in changes.items() for text in (f"--{key}", str(value))]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(["--config", str(ROOT / "recipes" / recipe), *arguments])


def test_recipes_name_their_own_path():
    for recipe in RECIPES:
        assert f"--config recipes/{recipe} " in (ROOT / "recipes" / recipe).read_text(encoding="utf-8")
