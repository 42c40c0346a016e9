"""Options for GPUs with little memory: quantized bases, gradient checkpointing, accumulation and 8-bit AdamW.

On the CPU, which bitsandbytes supports. pytest tests/training/test_small_cards.py
"""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_run import trained_with
from transformers import BlipForConditionalGeneration

from medcap.recipe import read_recipe
from medcap.training.memory import LiveTensors, MemoryEstimate, optimizer_bytes

SMALL = {
    "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_8bit",
    "gradient_checkpointing": True, "feature_cache": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(trained_run, train_script, tmp_path_factory):
    """A run with 4-bit base, gradient checkpointing, accumulation and 8-bit AdamW, of two epochs."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return folder, *trained_with(train_script, trained_run, folder, quantization="4bit", **SMALL)


def test_gradient_checkpointing_does_not_change_the_losses(small, trained_run, train_script, tmp_path):
    plain, stderr = trained_with(
        train_script, trained_run, tmp_path / "run", quantization="4bit", **{**SMALL, "gradient_checkpointing": False}
    )
    for key in ("loss", "eval_loss", "eval_cider"):
        assert [line[key] for line in plain] == pytest.approx([line[key] for line in small[1]], rel=1e-5)
    stored, recomputed = (float(text.split(" activations")[0].rsplit(" ", 1)[1]) for text in (stderr, small[2]))
    assert recomputed <= stored


def test_quantization_changes_the_first_loss_by_less_than_a_tenth(small, trained_run):
    """Two micro-batches of 2 are a step of 4 captions."""
    expected = losses_until(trained_run.folder / "checkpoint-6")
    quantized = losses_until(small[0] / "checkpoint-6")
    assert len(quantized) == len(expected) == 6
    assert quantized[0] == pytest.approx(expected[0], rel=0.1)
    assert quantized[-1] < quantized[0]


def losses_until(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_adapter_works_on_the_base_without_quantization(small, trained_run, tiny_base):
    """PEFT loads it, and it changes the logits."""
    adapter = small[0] / "adapter"
    assert (
        load_file(adapter / "adapter_model.safetensors").keys()
        == load_file(trained_run.folder / "adapter" / "adapter_model.safetensors").keys()
    )
    base = BlipForConditionalGeneration.from_pretrained(tiny_base).eval()
    ids, pixels = torch.tensor([[1, 9, 30]]), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base(pixel_values=pixels, input_ids=ids).logits
        after = PeftModel.from_pretrained(base, adapter).eval()(pixel_values=pixels, input_ids=ids).logits
    assert (after - before).abs().max() > 0.1
    assert "quantization_config" not in (adapter / "adapter_config.json").read_text()


def test_8bit_base_trains(trained_run, train_script, tmp_path):
    metrics, _ = trained_with(train_script, trained_run, tmp_path / "run", quantization="8bit", **SMALL)
    losses = losses_until(tmp_path / "run" / "checkpoint-6")
    assert losses[-1] < losses[0]
    assert 0 < metrics[-1]["eval_loss"] < losses[0]


def test_qlora_recipe_uses_4bit_and_gradient_checkpointing():
    recipe = read_recipe(["--config", "recipes/blip-large-rocov2/qlora.yaml", "--use_cpu", "true"])
    assert recipe.model.quantization == "4bit"
    assert recipe.training.gradient_checkpointing
    assert recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps == 64


def test_memory_estimate_and_peak_are_printed(small):
    first, last = (line for line in small[2].splitlines() if line.startswith("memory: "))
    assert first.startswith("memory: about ")
    assert all(f" {part}" in first for part in ("weights", "gradients and optimizer", "activations of 2 images"))
    assert " GB measured, " in last
    assert last.endswith("%)")


def test_total_of_the_estimate_is_the_sum_of_its_parts():
    estimate = MemoryEstimate(held=10, weights=4, adapter=20, activations=30, logits=40, images=2)
    assert estimate.total == 100
    sizes = MemoryEstimate(3 * 10**9, 10**9, 10**8, 5 * 10**8, 4 * 10**8, 16)
    assert str(sizes) == (
        "about 4.00 GB: 1.00 weights, 2.00 libraries and other objects, 0.10 gradients and optimizer, "
        "0.50 activations of 16 images, 0.40 logits"
    )


OPTIMIZERS = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 1,
    "sgd": 0,
}


@pytest.mark.parametrize(("name", "size"), OPTIMIZERS.items())
def test_optimizer_bytes(name, size):
    assert optimizer_bytes(name) == size


def test_peak_counts_only_live_tensors():
    before = torch.ones(1000)
    with LiveTensors() as live:
        a = before + 1  # 4,000 bytes
        b = a * 2  # 8,000 with it
        c = b.view(10, 100)  # the same bytes
        del a, b
        d = c + 1
    assert live.peak == 8_000
    assert live.now == 8_000
    assert (before + 1).sum() + d.sum() > 0
