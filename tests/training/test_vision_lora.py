"""A vision adapter trains exactly as with PEFT and transformers alone. pytest tests/training/test_vision_lora.py"""

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import make_trainer, rows_of
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration

from medcap.modeling.families.blip import TARGETS
from medcap.training.trainer import CaptionTrainer

__all__ = ["make_trainer"]  # a fixture
STEPS, LEARNING_RATE = 3, 0.05  # lora_B starts at zero: the first step changes only lora_B, later ones also lora_A


def plain_adapter(folder, state: dict[str, torch.Tensor], targets: str) -> PeftModel:
    """Return transformers' BLIP with PEFT's LoRA of rank 16 and the weights `state`."""
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS[targets])
    model = get_peft_model(BlipForConditionalGeneration.from_pretrained(folder), config)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert weights.keys() == state.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])
    return model.train()


def train_plain(model: PeftModel, batch: dict[str, torch.Tensor]) -> None:
    """Take STEPS steps of SGD on the mean cross-entropy of the next tokens."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], LEARNING_RATE)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = model(**inputs).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        optimizer.step()


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return copies of the trainable weights."""
    return {name: copy.deepcopy(weight.data) for name, weight in model.named_parameters() if weight.requires_grad}


def vision_trainer(make_trainer) -> CaptionTrainer:
    """Return a trainer of STEPS steps of SGD on one batch of all rows."""
    return make_trainer(
        rows=rows_of(), targets="text-and-vision-attention", max_steps=STEPS, learning_rate=LEARNING_RATE,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip


def test_vision_adapters_move_as_with_plain_peft(make_trainer, tiny_base):
    trainer = vision_trainer(make_trainer)
    before = trained(trainer.model)
    plain = plain_adapter(tiny_base, before, "text-and-vision-attention")
    train_plain(plain, trainer.data_collator(trainer.train_dataset))
    trainer.train()
    after, expected = trained(trainer.model), trained(plain)
    vision = [name for name in after if "vision_model" in name]
    assert len(vision) == 2 * 2 * 2  # A and B of the two linear layers of each of two layers
    assert min((expected[name] - before[name]).abs().max().item() for name in vision) > 1e-4
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
