"""CaptionTrainer: the definition of the loss, generation from pixels only, and overfitting eight captions.

Traps 6, 7, 8, 14, 17, 19, 20, 21, 22, 23. pytest tests/training/test_trainer.py
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipProcessor, EvalPrediction, TrainerCallback

from medcap.data.captions import IGNORED, CaptionCollator
from medcap.data.detokenize import detokenize
from medcap.metrics.coco import Scores
from medcap.metrics.statistics import caption_statistics
from medcap.modeling.families import family_of
from medcap.modeling.generation import decode_captions
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.training import caption_metrics, memory
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.memory import MemoryEstimate, MemoryReport
from medcap.training.trainer import CaptionTrainer

# 3 to 22 tokens, with hyphens, decimals, parentheses and apostrophes
CAPTIONS = (
    "Cyst.",
    "Normal chest radiograph.",
    "CT scan showing no lesion.",
    "Large left-sided mass (arrow).",
    "Contrast-enhanced CT of the abdomen with a 3.5 cm rim-enhancing abscess.",
    "Axial T2-weighted MRI shows a small calcification in the left upper hemisphere (white arrow).",
    "Ultrasound with a cystic lesion measuring 3 x 4.5 cm in the right liver lobe.",
    "Angiogram: a crescent-shaped hematoma in the lower right territory of an 81-year-old man.",
)


def rows_of(captions=CAPTIONS, size=32):
    """Return rows with noise images, the same for the same number of captions."""
    pixels = torch.randn(len(captions), 3, size, size, generator=torch.Generator().manual_seed(0))
    return [
        {"image_id": f"i{row}", "pixel_values": pixels[row], "caption": caption}
        for row, caption in enumerate(captions)
    ]


@pytest.fixture
def make_trainer(blip, tmp_path):
    """Return a function that makes a trainer of a new adapter on the tiny base."""

    def make(
        rows=None, base=None, targets="text", prompt="", max_new_tokens=40, callbacks=None, compute_metrics=None,
        **settings,
    ):  # fmt: skip
        model, processor = base or blip
        torch.manual_seed(0)
        adapted = add_lora(model, targets=targets, r=16, alpha=32, dropout=0.0)
        rows = rows_of() if rows is None else rows
        arguments = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "disable_tqdm": True, "max_steps": 1,
            "per_device_train_batch_size": 8, "per_device_eval_batch_size": 3, "logging_steps": 1, "seed": 0,
            "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
            "train_sampling_strategy": "random",
        }  # fmt: skip
        return CaptionTrainer(
            model=adapted,
            args=CaptionTrainingArguments(**{**arguments, **settings}),
            generation_config=family_of(model).make_generation_config(num_beams=1, max_new_tokens=max_new_tokens),
            prompt=prompt,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=CaptionCollator(processor.tokenizer, family_of(model).first_token_id, 64, prompt),
            processing_class=processor,
            callbacks=callbacks,
            compute_metrics=compute_metrics,
        )

    return make


class Gradients(TrainerCallback):
    """Stores the gradient of the first step."""

    def __init__(self):
        self.by_name = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        weights = model.named_parameters()
        self.by_name = self.by_name or {n: w.grad.clone() for n, w in weights if w.grad is not None}


def logits_of(trainer, batch):
    """Return the logits of a batch (B, T, vocab)."""
    return trainer.model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}).logits


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_loss_is_the_mean_over_the_next_tokens(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator(trainer.train_dataset)
    with torch.no_grad():
        loss, log_probs = trainer.compute_loss(trainer.model, batch), logits_of(trainer, batch).log_softmax(-1)
    terms = [
        -log_probs[row, t - 1, batch["input_ids"][row, t]].item()  # token t is predicted at t - 1
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist())
        for t in range(1, length)
    ]
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-4)


def test_loss_does_not_depend_on_padding(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    wider = {"pixel_values": batch["pixel_values"]}
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
        wider[name] = F.pad(batch[name], (0, 50), value=value)
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, wider).item() == pytest.approx(
            trainer.compute_loss(trainer.model, batch).item(), abs=1e-5
        )


def test_loss_of_a_batch_equals_the_loss_of_its_single_captions(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        alone = [trainer.data_collator([row]) for row in trainer.train_dataset]
        tokens = [int(batch["labels"].ne(IGNORED).sum()) for batch in alone]
        sums = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=1).item() for batch in alone]
        together = trainer.compute_loss(trainer.model, trainer.data_collator(trainer.train_dataset))
    assert len(set(tokens)) > 4
    assert together.item() == pytest.approx(sum(sums) / sum(tokens), abs=1e-4)


def test_prompt_tokens_have_no_loss(make_trainer):
    trainer = make_trainer(prompt="an image of")
    batch = trainer.data_collator(trainer.train_dataset)
    with torch.no_grad():
        loss, logits = trainer.compute_loss(trainer.model, batch), logits_of(trainer, batch)
    logits[:, :3] += torch.randn_like(logits[:, :3])  # the positions that predict the prompt
    changed = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert changed.item() == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_equals_that_of_torch(make_trainer, smoothing):
    trainer = make_trainer(label_smoothing_factor=smoothing)
    batch = trainer.data_collator(trainer.train_dataset)
    trainer.model.train()
    with torch.no_grad():
        loss, logits = trainer.compute_loss(trainer.model, batch), logits_of(trainer, batch)
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=smoothing
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_evaluation_is_not_smoothed(make_trainer):
    trainer = make_trainer(label_smoothing_factor=0.1)
    batch = trainer.data_collator(trainer.train_dataset)
    trainer.model.eval()
    with torch.no_grad():
        loss, logits = trainer.compute_loss(trainer.model, batch), logits_of(trainer, batch)
    unsmoothed = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()
    assert loss.item() == pytest.approx(unsmoothed, abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(unsmoothed, abs=1e-5)


def test_accumulation_gives_the_same_step(make_trainer, loaded):
    """8 x 1, 2 x 4 and 1 x 8 have the same loss, gradient and norm."""
    steps = []
    for batch, accumulated in ((8, 1), (2, 4), (1, 8)):
        gradients = Gradients()
        trainer = make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, callbacks=[gradients],
            max_grad_norm=0.0, learning_rate=0.0, base=copy.deepcopy(loaded),
        )  # fmt: skip
        trainer.train()
        norm = torch.stack([gradient.norm() for gradient in gradients.by_name.values()]).norm().item()
        steps.append((losses(trainer)[0], norm, gradients.by_name))
    for loss, norm, gradient in steps[1:]:
        assert loss == pytest.approx(steps[0][0], rel=1e-5)
        assert norm == pytest.approx(steps[0][1], rel=1e-4)
        torch.testing.assert_close(gradient, steps[0][2], rtol=1e-3, atol=1e-5)


LOSSES = (16.28984, 16.57927, 15.32490, 13.58387, 11.70200, 11.48089)  # torch 2.13.0, transformers 5.23.0, CPU


def test_loss_of_every_step_is_unchanged(make_trainer):
    """A change of these numbers is a change of training and belongs in the changelog."""
    trainer = make_trainer(max_steps=6, per_device_train_batch_size=4, learning_rate=0.01, warmup_steps=2)
    trainer.train()
    assert losses(trainer) == pytest.approx(LOSSES, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(make_trainer, loaded):
    steps = []
    for checkpointing in (False, True):
        gradients = Gradients()
        trainer = make_trainer(
            gradient_checkpointing=checkpointing, callbacks=[gradients], max_grad_norm=0.0, base=copy.deepcopy(loaded)
        )
        trainer.train()
        text = trainer.model.base_model.model.text_decoder.bert.encoder
        assert text.gradient_checkpointing == checkpointing
        steps.append(gradients.by_name)
    assert len(steps[0]) == 2 * 2 * 10  # A and B of the ten linear layers of each of two layers
    assert sum(gradient.abs().sum() for gradient in steps[0].values()) > 0.1
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-6)


def test_non_finite_loss_stops_before_the_weights_change(make_trainer):
    trainer = make_trainer(max_steps=4, learning_rate=1e38, lr_scheduler_type="constant")
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 2, image_id i\d, i\d.*; no weight was"):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_trains(make_trainer, tiny_base, quantization):
    base = load_base(str(tiny_base), quantization=quantization)
    trainer = make_trainer(base=base, max_steps=3, learning_rate=0.01)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    trainer.train()
    first, *_, last = losses(trainer)
    assert last < first - 0.1
    assert all(
        torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters() if name in before
    )


@pytest.mark.parametrize("as_dataset", [False, True])
def test_plain_model_and_plain_rows_train_and_evaluate(tiny_base, tmp_path, as_dataset):
    """Without adapter, row numbers or lengths; the trainer counts the tokens for group_by_length."""
    model = BlipForConditionalGeneration.from_pretrained(tiny_base)
    processor = BlipProcessor.from_pretrained(tiny_base)
    rows = [{"pixel_values": row["pixel_values"], "caption": row["caption"]} for row in rows_of()]
    if as_dataset:
        columns = {name: [row[name] for row in rows] for name in ("caption", "pixel_values")}
        columns["pixel_values"] = [pixels.numpy() for pixels in columns["pixel_values"]]
        rows = Dataset.from_dict(columns).with_format("torch")
    trainer = CaptionTrainer(
        model=model,
        args=CaptionTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=2, per_device_train_batch_size=4,
            eval_strategy="no", save_strategy="no", load_best_model_at_end=False, logging_steps=1,
            train_sampling_strategy="group_by_length", learning_rate=1e-3, per_device_eval_batch_size=4,
        ),
        generation_config=family_of(model).make_generation_config(num_beams=2, max_new_tokens=5),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=CaptionCollator(processor.tokenizer, family_of(model).first_token_id, 64),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    evaluated = trainer.predict(rows)
    assert evaluated.label_ids.tolist() == list(range(8))
    assert evaluated.metrics["test_loss"] < losses(trainer)[0]
    assert trainer.train_dataset.lengths[0] == len(processor.tokenizer(CAPTIONS[0])["input_ids"])


def test_eight_captions_are_overfitted_and_generated_exactly(make_trainer):
    trainer = make_trainer(max_steps=80, learning_rate=0.02, lr_scheduler_type="cosine", logging_steps=80)
    trainer.train()
    evaluated = trainer.predict(trainer.eval_dataset)
    assert evaluated.metrics["test_loss"] < 0.05
    captions = dict(zip(evaluated.label_ids.tolist(), decoded(trainer, evaluated.predictions), strict=True))
    assert captions == {row: detokenize(caption.lower()) for row, caption in enumerate(CAPTIONS)}


def decoded(trainer, ids):
    tokenizer = trainer.processing_class.tokenizer
    return decode_captions(tokenizer, np.where(ids < 0, tokenizer.pad_token_id, ids).tolist())


def test_metrics_receive_only_ids_and_row_numbers(make_trainer):
    received = []
    trainer = make_trainer(max_new_tokens=7, compute_metrics=lambda evaluated: received.append(evaluated) or {})
    trainer.evaluate()
    (evaluated,) = received
    assert isinstance(evaluated.predictions, np.ndarray)
    assert evaluated.predictions.shape == (8, 7)
    assert evaluated.predictions.dtype == np.int64
    assert evaluated.label_ids.tolist() == list(range(8))
    assert evaluated.inputs is None
    assert evaluated.losses is None


def test_predictions_do_not_depend_on_the_references(make_trainer):
    trainer = make_trainer(max_new_tokens=12)
    others = rows_of([CAPTIONS[-1]] * len(CAPTIONS))
    first, second = trainer.predict(trainer.eval_dataset), trainer.predict(others)
    assert first.metrics["test_loss"] != pytest.approx(second.metrics["test_loss"], abs=0.01)
    assert np.array_equal(first.predictions, second.predictions)
    assert len({tuple(ids) for ids in first.predictions.tolist()}) > 1  # they depend on the images


def test_generation_starts_with_the_prompt(make_trainer):
    trainer = make_trainer(prompt="an image of", max_new_tokens=5)
    ids = trainer.predict(trainer.eval_dataset).predictions
    trainer.prompt = ""
    assert not np.array_equal(ids, trainer.predict(trainer.eval_dataset).predictions)
    assert not any(text.startswith("an image of") for text in decoded(trainer, ids))


def test_evaluation_scores_all_rows_although_training_drops_the_last(make_trainer):
    trainer = make_trainer(dataloader_drop_last=True, per_device_train_batch_size=3, per_device_eval_batch_size=3)
    assert len(trainer.get_train_dataloader()) == 2
    assert len(trainer.predict(trainer.eval_dataset).predictions) == 8
    assert trainer.args.dataloader_drop_last


def test_loss_needs_no_generation(make_trainer, monkeypatch):
    trainer = make_trainer(prediction_loss_only=True)
    monkeypatch.setattr(trainer, "_generate", None)
    assert trainer.evaluate()["eval_loss"] > 0


def test_every_prediction_is_scored_against_its_own_reference(loaded, monkeypatch):
    """In any order of rows; padding between batches is not part of a caption."""
    tokenizer, scored = loaded[1].tokenizer, []

    def score(predictions, references, **settings):
        scored.append((list(predictions), references))
        return Scores({"cider": 1.5}, {}, "", caption_statistics(["a"], [["a b"]]))

    monkeypatch.setattr(caption_metrics, "score_captions", score)
    ids = [tokenizer(text)["input_ids"] for text in ("a large mass", "", "a cyst", "a cyst")]
    table = np.full((4, 6), -100)
    for row, tokens in enumerate(ids):
        table[row, : len(tokens)] = tokens
    scores = CaptionMetrics(tokenizer, ["R0", "R1", "R2", "R3"])
    metrics = scores(EvalPrediction(predictions=table, label_ids=np.array([2, 0, 3, 1])))
    assert scored == [(["", "a cyst", "a large mass", "a cyst"], [["R0"], ["R1"], ["R2"], ["R3"]])]
    assert scores.predictions == scored[0][0]
    assert metrics == {"cider": 1.5, "mean_words": 7 / 4, "length_ratio": 0.5, "distinct_fraction": 3 / 4}


def test_memory_is_measured_after_an_evaluation_on_start(monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", lambda _: 3_000_000_000)
    report, args, state = MemoryReport(None), SimpleNamespace(device=torch.device("cpu")), None
    report.estimate = MemoryEstimate(1_500_000_000, 0, 0, 0, 0, 1)
    assert report.outcome().startswith("memory: not measured, about 1.50 GB: 0.00 weights, 1.50 libraries")
    report.on_evaluate(args, state, None)
    report.on_step_end(args, state, None)
    assert report.outcome() == "memory: 3.00 GB measured, 1.50 estimated (-50%)"
    report.on_evaluate(args, state, None)
    assert not report.is_measuring
