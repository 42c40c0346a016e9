"""Full fine-tuning of every family: which weights are trained, and checkpoints and models that load exactly.

pytest tests/families/test_full_training.py
"""

import copy
import json

import pytest
import tiny_bases
import torch
from test_families import PROMPT, images, own_caption, rows_of
from transformers import AutoConfig

from medcap.inference import load_captioner
from medcap.modeling.families import family_class, family_of
from medcap.modeling.full import train_all
from medcap.modeling.lora_init import save_weights
from medcap.recipe import CaptionTrainingArguments
from medcap.training.trainer import CaptionTrainer


def trained(name, folder, checkpoint=None, vision=False):
    """Train a copy of a tiny base for two steps of four images, and return the trainer."""
    family = tiny_bases.loaded(name)
    base = copy.deepcopy(family.base)
    model = train_all(family_of(base, family.processor), vision)
    trainer = CaptionTrainer(
        model=model,
        args=CaptionTrainingArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, max_steps=2, per_device_train_batch_size=2,
            seed=0, learning_rate=0.003, eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1,
            metric_for_best_model="loss", greater_is_better=True,
        ),
        generation_config=family.make_generation_config(num_beams=1, max_new_tokens=2),
        prompt=PROMPT,
        train_dataset=rows_of(family),
        eval_dataset=rows_of(family, [0]),
        data_collator=family.collator(40, PROMPT),
        processing_class=family.processor,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def changed(model, other):
    """Return the names of the weights that differ."""
    weights = other.state_dict()
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}


@pytest.mark.parametrize("name", ["vit-gpt2", "blip2-opt", "llava", "gemma3", "qwen2_5_vl"])
def test_a_resumed_run_and_its_best_model_are_exact(name, tmp_path):
    """The best checkpoint is the first one, because a higher loss counts as better."""
    base, first = tiny_bases.loaded(name).base, trained(name, tmp_path)
    vision = {id(weight) for weight in first.family.vision_encoder.parameters()}
    moved = changed(first.model, base)
    frozen = {key for key, weight in first.model.named_parameters(remove_duplicate=False) if id(weight) in vision}
    assert frozen
    assert moved
    assert not moved & frozen
    assert first.best_loaded.name == "checkpoint-1"
    again = trained(name, tmp_path, str(tmp_path / "checkpoint-1"))
    assert changed(again.model, first.model) == set()
    assert [line.get("eval_loss") for line in again.state.log_history] == [
        line.get("eval_loss") for line in first.state.log_history
    ]
    config = AutoConfig.from_pretrained(tmp_path / "checkpoint-2")
    last = family_class(name, config).model_class.from_pretrained(tmp_path / "checkpoint-2")
    assert changed(last, first.model) == moved  # the second step moves the same weights


@pytest.mark.parametrize("name", ["dinov2-bert", "llava", "blip2-opt"])
def test_the_vision_encoder_is_trained_and_the_saved_model_generates_the_captions(name, tmp_path):
    trainer = trained(name, tmp_path / "run", vision=True)
    family = trainer.family
    vision = {id(weight) for weight in family.vision_encoder.parameters()}
    moved = changed(trainer.model, tiny_bases.loaded(name).base)
    assert {key for key, weight in trainer.model.named_parameters() if id(weight) in vision} & moved
    config = family.make_generation_config(num_beams=2, max_new_tokens=6)
    expected = [own_caption(family, number, config) for number in range(2)]
    save_weights(trainer.model, tmp_path / "model", {})
    for part in (family.processor, config):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text(json.dumps({"prompt": PROMPT}))
    assert load_captioner(str(tmp_path / "model"), detokenize=False).caption(images(2)) == expected
