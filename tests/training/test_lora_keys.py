"""Runs with other keys of the adapter resume exactly; the learning rates of LoRA+ reach the optimizer.

pytest tests/training/test_lora_keys.py
"""

import contextlib
import io
import shutil

import pytest
import torch
import yaml
from conftest import recipe_error, write_recipe
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

from medcap.data.captions import CaptionCollator
from medcap.inference import load_captioner
from medcap.modeling.families import family_of
from medcap.modeling.lora import add_lora
from medcap.publish.merge import merge
from medcap.recipe import CaptionTrainingArguments
from medcap.training.lora_plus import raise_lora_b
from medcap.training.trainer import CaptionTrainer

STEPS = 3  # per epoch of the trained run
KEYS = {
    "dora and lora+": {"lora_variant": "dora", "lora_rank_pattern": {"query": 2}, "lora_lr_ratio": 4},
    "pissa": {"lora_init": "pissa_niter_2", "lora_modules_to_save": ["word_embeddings"], "learning_rate": 0.002},
    "embeddings": {"lora_modules_to_save": ["word_embeddings"], "lora_lr_ratio": 4, "learning_rate": 0.002},
}


@pytest.fixture(scope="module", params=KEYS.values(), ids=KEYS)
def run(request, trained_run, train_script, tmp_path_factory):
    """The folder of the trained run's recipe with other keys."""
    folder = tmp_path_factory.mktemp("keys")
    before = yaml.safe_load(trained_run.recipe.read_text())
    recipe = write_recipe(folder / "recipe.yaml", **{**before, **request.param, "output_dir": str(folder / "run")})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_script.main(["--config", str(recipe)])
    return folder / "run"


def test_a_run_resumed_after_an_epoch_equals_the_uninterrupted_one(run, train_script, tmp_path):
    shutil.copytree(run / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_script.main([
            "--config", str(run / "recipe.yaml"), "--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"
        ])  # fmt: skip
    for name in (f"checkpoint-{2 * STEPS}", "adapter"):
        actual, expected = (load_file(folder / name / "adapter_model.safetensors") for folder in (tmp_path, run))
        assert actual.keys() == expected.keys()
        assert [key for key, weight in expected.items() if not torch.equal(weight, actual[key])] == []
    states = [torch.load(folder / f"checkpoint-{2 * STEPS}" / "optimizer.pt") for folder in (tmp_path, run)]
    assert states[0]["param_groups"] == states[1]["param_groups"]


def test_the_saved_adapter_merges(run):
    merged, captioner = merge(run / "adapter"), load_captioner(str(run / "adapter"), precision="fp32")
    ids = torch.tensor([[192, 20, 30, 40]])
    batch = {"pixel_values": torch.randn(1, 3, 48, 48), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, captioner.model(**batch).logits, atol=1e-4, rtol=1e-5)
    text = merged.text_decoder
    assert text.get_output_embeddings().weight is text.get_input_embeddings().weight


@pytest.fixture
def make_trainer(blip, tmp_path):
    """Return a function that makes a trainer with a ratio of the learning rates."""

    def make(ratio, options=(), **settings):
        model, processor = blip
        adapted = add_lora(model, targets="text", r=4, alpha=8, dropout=0.0, options=dict(options))
        return CaptionTrainer(
            model=adapted,
            args=CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no",
                                          load_best_model_at_end=False, **settings),
            generation_config=family_of(model).make_generation_config(num_beams=1, max_new_tokens=4),
            lora_lr_ratio=ratio,
            train_dataset=[{"caption": "cyst"}],
            data_collator=CaptionCollator(processor.tokenizer, family_of(model).first_token_id, 64),
            processing_class=processor,
        )  # fmt: skip

    return make


def settings_by_name(optimizer, model):
    """Return the learning rate and weight decay of each trainable parameter."""
    groups = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    return {name: groups.get(id(weight)) for name, weight in model.named_parameters() if weight.requires_grad}


def test_learning_rates_are_those_of_peft(make_trainer):
    trainer = make_trainer(4, learning_rate=0.01, weight_decay=0.1)
    model = trainer.model
    actual = settings_by_name(trainer.create_optimizer(), model)
    plain = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=4, loraplus_weight_decay=0.1
    )
    assert actual == settings_by_name(plain, model)
    assert {name.split(".")[-3]: values for name, values in actual.items()} == {
        "lora_A": (0.01, 0.1), "lora_B": (0.04, 0.1)
    }  # fmt: skip


def test_magnitudes_have_the_learning_rate_of_a(make_trainer):
    trainer = make_trainer(4, {"use_dora": True}, learning_rate=0.01)
    rates = settings_by_name(trainer.create_optimizer(), trainer.model)
    assert {rate for name, (rate, _) in rates.items() if "magnitude" in name} == {0.01}


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "adamw_8bit"])
def test_the_ratio_reaches_other_optimizers_and_the_schedule(make_trainer, optim):
    trainer = make_trainer(16, learning_rate=0.5, optim=optim, lr_scheduler_type="linear")
    trainer.create_optimizer_and_scheduler(10)
    for steps in (0, 5):
        rates = settings_by_name(trainer.optimizer, trainer.model)
        assert {name.split(".")[-3]: rate for name, (rate, _) in rates.items()} == {
            "lora_A": 0.5 * (1 - steps / 10), "lora_B": 8 * (1 - steps / 10)
        }  # fmt: skip
        for _ in range(5):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()


def test_without_a_ratio_the_groups_are_those_of_the_trainer(make_trainer):
    assert len(make_trainer(1).create_optimizer().param_groups) == 2


def test_an_optimizer_without_these_parameters_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"lora_lr_ratio is 4, but SGD has no learning rates for groups"):
        raise_lora_b(torch.optim.SGD([torch.zeros(1)], lr=1.0), make_trainer(4).model, 4)


def test_a_ratio_below_one_is_refused(recipe_file):
    path = recipe_file(lora_lr_ratio=0.5)
    assert recipe_error(["--config", path]) == f"{path}: lora_lr_ratio is 0.5; allowed is 1 to 1000"
