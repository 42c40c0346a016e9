"""Vision encoders are trained exactly as by transformers and PEFT alone: with adapters, and completely.

pytest tests/families/test_vision_training.py
"""

import copy

import pytest
import tiny_bases
import torch
from peft import LoraConfig, get_peft_model
from test_families import PROMPT, own_inputs, rows_of

from medcap.modeling.families import family_of
from medcap.modeling.full import train_all
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.training.trainer import CaptionTrainer

STEPS, RATE = 2, 0.5  # the first step of LoRA changes only B, the second also A
NAMES = ["vit-gpt2", "llava", "blip2-opt"]


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def train(model, family, folder):
    """Take STEPS steps of SGD on the first image with CaptionTrainer, and return the trained weights."""
    trainer = CaptionTrainer(
        model=model,
        args=CaptionTrainingArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, max_steps=STEPS, learning_rate=RATE, optim="sgd",
            lr_scheduler_type="constant", max_grad_norm=0.0, eval_strategy="no", save_strategy="no",
            load_best_model_at_end=False,
        ),
        generation_config=family.make_generation_config(num_beams=1, max_new_tokens=2),
        prompt=PROMPT,
        train_dataset=rows_of(family, [0]),
        data_collator=family.collator(40, PROMPT),
        processing_class=family.processor,
    )  # fmt: skip
    trainer.train()
    return weights_of(model)


def train_plain(model, family):
    """Take the same steps with a plain loop on the loss of the model, from the inputs of its processor."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], RATE)
    inputs = own_inputs(family, 0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return weights_of(model)


def assert_same_training(before, after, expected):
    assert before.keys() == after.keys() == expected.keys()
    assert any((expected[name] - before[name]).abs().max() > 1e-3 for name in before)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_vision_adapters_move_as_with_plain_peft(name, tmp_path):
    family, base = tiny_bases.loaded(name), copy.deepcopy(tiny_bases.loaded(name).base)
    targets = family.targets["text-and-vision-attention"]
    plain = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, target_modules=targets)).train()
    base = copy.deepcopy(family.base)
    model = add_lora(base, targets="text-and-vision-attention", r=2, alpha=8, dropout=0.0)
    model.load_state_dict(plain.state_dict())
    before = weights_of(plain)
    encoder = {id(weight) for weight in family_of(base, family.processor).vision_encoder.parameters()}
    vision = [key for key, weight in model.named_parameters() if key in before and id(weight) in encoder]
    after, expected = train(model, family, tmp_path), train_plain(plain, family)
    assert_same_training(before, after, expected)
    moved = [key for key in vision if (expected[key] - before[key]).abs().max() > 2e-5]
    assert len(moved) >= len(vision) / 2 > 2  # LLaVA takes the states of the last but one layer


@pytest.mark.parametrize("name", NAMES)
def test_a_vision_encoder_without_adapter_moves_as_with_plain_transformers(name, tmp_path):
    family = tiny_bases.loaded(name)
    plain, base = copy.deepcopy(family.base).train(), copy.deepcopy(family.base)
    before = weights_of(plain)
    after = train(train_all(family_of(base, family.processor), vision=True), family, tmp_path)
    assert_same_training(before, after, train_plain(plain, family))
