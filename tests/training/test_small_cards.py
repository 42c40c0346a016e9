"""Small cards: quantized bases, gradient checkpointing, accumulation and 8-bit AdamW, by the script, on the CPU.

bitsandbytes computes there too. pytest tests/training/test_small_cards.py
"""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_run import trained_with
from transformers import BlipForConditionalGeneration

from medcap.recipe import read_recipe
from medcap.training import memory
from medcap.training.memory import MemoryEstimate

SMALL = {
    "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_8bit",
    "gradient_checkpointing": True, "feature_cache": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(trained_run, train_script, tmp_path_factory):
    """4-bit, checkpointed, accumulated, with 8-bit AdamW, and trained again after an evaluation."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return folder, *trained_with(train_script, trained_run, folder, quantization="4bit", **SMALL)


def test_gradient_checkpointing_changes_no_loss_of_a_quantized_base(small, trained_run, train_script, tmp_path):
    plain, said = trained_with(
        train_script, trained_run, tmp_path / "run", quantization="4bit", **{**SMALL, "gradient_checkpointing": False}
    )
    for key in ("loss", "eval_loss", "eval_cider"):
        assert [line[key] for line in plain] == pytest.approx([line[key] for line in small[1]], rel=1e-5)
    kept, recomputed = (float(text.split(" activations")[0].rsplit(" ", 1)[1]) for text in (said, small[2]))
    assert recomputed <= kept


def test_the_step_is_that_of_the_whole_base(small, trained_run):
    """Two micro-batches of 2 are a step of 4 captions; 4 bits move the loss of a tiny base by less than a tenth."""
    first = trained_with_losses(trained_run.folder / "checkpoint-6")
    found = trained_with_losses(small[0] / "checkpoint-6")
    assert len(found) == len(first) == 6
    assert found[0] == pytest.approx(first[0], rel=0.1)
    assert found[-1] < found[0]


def trained_with_losses(checkpoint):
    import json

    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_the_adapter_fits_the_base_that_is_not_quantized(small, trained_run, tiny_base):
    """With nothing but PEFT; and what it learned shows there."""
    adapter = small[0] / "adapter"
    assert (
        load_file(adapter / "adapter_model.safetensors").keys()
        == load_file(trained_run.folder / "adapter" / "adapter_model.safetensors").keys()
    )
    base = BlipForConditionalGeneration.from_pretrained(tiny_base).eval()
    words, pixels = torch.tensor([[1, 9, 30]]), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base(pixel_values=pixels, input_ids=words).logits
        after = PeftModel.from_pretrained(base, adapter).eval()(pixel_values=pixels, input_ids=words).logits
    assert (after - before).abs().max() > 0.1
    assert "quantization_config" not in (adapter / "adapter_config.json").read_text()


def test_eight_bits_train_too(trained_run, train_script, tmp_path):
    metrics, _ = trained_with(train_script, trained_run, tmp_path / "run", quantization="8bit", **SMALL)
    losses = trained_with_losses(tmp_path / "run" / "checkpoint-6")
    assert losses[-1] < losses[0]
    assert 0 < metrics[-1]["eval_loss"] < losses[0]


def test_the_recipe_is_for_small_cards(monkeypatch):
    recipe = read_recipe(["--config", "recipes/blip-large-rocov2/qlora.yaml", "--use_cpu", "true"])
    assert recipe.model.quantization == "4bit"
    assert recipe.training.gradient_checkpointing
    assert recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps == 64


# --- memory ---


def test_memory_is_estimated_before_and_compared_after(small):
    first, last = (line for line in small[2].splitlines() if line.startswith("memory: "))
    assert first.startswith("memory: about ")
    assert all(f" {part}" in first for part in ("weights", "gradients and optimizer", "activations of 2 images"))
    assert " GB seen, " in last
    assert last.endswith("%)")


def test_parts_of_the_estimate_add_up():
    estimate = MemoryEstimate(held=10, weights=4, adapter=20, activations=30, logits=40, images=2)
    assert estimate.total == 100
    sizes = MemoryEstimate(3 * 10**9, 10**9, 10**8, 5 * 10**8, 4 * 10**8, 16)
    assert str(sizes) == (
        "about 4.00 GB: 1.00 weights, 2.00 libraries and what else is held, 0.10 gradients and optimizer, "
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
def test_the_optimizer_is_counted_by_its_name(name, size):
    assert memory._optimizer_bytes(name) == size


def test_live_tensors_are_counted_and_dead_ones_forgotten():
    kept = torch.ones(1000)
    with memory._LiveTensors() as live:
        a = kept + 1  # 4,000 bytes
        b = a * 2  # 8,000 with it
        c = b.view(10, 100)  # the same bytes
        del a, b
        d = c + 1
    assert live.peak == 8_000
    assert live.now == 8_000
    assert (kept + 1).sum() + d.sum() > 0
