"""Throughput, waiting time and time left of a training, and the warnings.

pytest tests/training/test_monitors.py
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from processes import CAPTIONS, trainer_of
from transformers import EvalPrediction, TrainerCallback, TrainerState

from medcap.data.captions import TokenizedCaptions
from medcap.metrics.coco import Scores
from medcap.metrics.diversity import sameness
from medcap.metrics.statistics import caption_statistics
from medcap.training import caption_metrics, monitors
from medcap.training.caption_metrics import CaptionMetrics
from medcap.training.monitors import TrainingMonitor

FIGURES = {
    "images_per_second", "tokens_per_second", "data_wait_fraction", "training_seconds", "memory_gb", "seconds_left",
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(monitors, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def started(step=0, history=(), chance=None):
    """Return a started TrainingMonitor and its state of 10 steps."""
    state = TrainerState(global_step=step, max_steps=10, log_history=list(history))
    monitor = TrainingMonitor(chance)
    monitor.on_train_begin(None, state, None)
    return monitor, state


def take_steps(monitor, state, clock, steps, waiting, working):
    """Run steps of 4 images and 30 tokens that wait and work for the given seconds."""

    def loader():
        while True:
            clock.now += waiting
            yield "batch"

    for _ in range(steps):
        next(monitor.time_batches(loader()))
        monitor.count_step(4, 30)
        clock.now += working
        state.global_step += 1
        monitor.on_step_end(None, state, None)


def test_rates_exclude_evaluations_and_checkpoints(clock):
    """Two steps of 3 s, 1 s of it waiting; an evaluation of 100 s and a checkpoint of 10 s do not count."""
    monitor, state = started()
    take_steps(monitor, state, clock, 1, waiting=1, working=2)
    clock.now += 100
    monitor.on_evaluate(SimpleNamespace(), state, None)
    clock.now += 10
    monitor.on_save(None, state, None)
    take_steps(monitor, state, clock, 1, waiting=1, working=2)
    figures = monitor.log_figures(state)
    assert {name: figures[name] for name in ("images_per_second", "tokens_per_second", "data_wait_fraction")} == {
        "images_per_second": 8 / 6, "tokens_per_second": 60 / 6, "data_wait_fraction": pytest.approx(2 / 6),
    }  # fmt: skip
    assert figures["training_seconds"] == 116
    assert figures["seconds_left"] == 116 / 2 * 8


def test_log_lines_and_metrics_cover_the_time_since_the_previous_one(clock):
    monitor, state = started()
    take_steps(monitor, state, clock, 1, waiting=0, working=4)
    assert monitor.log_figures(state)["images_per_second"] == 1
    take_steps(monitor, state, clock, 1, waiting=0, working=2)
    assert monitor.log_figures(state)["images_per_second"] == 2
    state.log_history += [{"grad_norm": 3.0}, {"grad_norm": 4.0}]
    figures = monitor.evaluation_figures(state)
    assert (figures["images_per_second"], figures["grad_norm"]) == (8 / 6, 4.0)


def test_resumed_training_includes_the_time_before_its_checkpoint(clock):
    """The evaluation after the last log line counts; the time left is estimated from this process only."""
    monitor, state = started(4, [{"training_seconds": 20.0}, {"training_seconds": 50.0}, {"eval_runtime": 7.0}])
    take_steps(monitor, state, clock, 2, waiting=0, working=5)
    assert monitor.seconds == 50 + 7 + 10
    assert monitor.log_figures(state)["seconds_left"] == 5 * 4


class Logged(TrainerCallback):
    """Collects the log lines that TensorBoard, trackio or wandb would receive."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(logs)


def test_log_lines_hold_throughput_and_count_every_image_and_token_once(tiny_base, tmp_path):
    logged = Logged()
    trainer = trainer_of(str(tiny_base), tmp_path, [logged], per_device_train_batch_size=4)
    trainer.train()
    *steps, _ = logged.lines
    assert len(steps) == 2 * 3
    assert all(line.keys() >= FIGURES | {"loss", "grad_norm"} for line in steps)
    labels = trainer.data_collator(trainer.train_dataset)["labels"].ne(-100).sum()
    meter = trainer.monitor.since_evaluation
    assert (meter.steps, meter.images, int(meter.tokens)) == (6, 2 * len(CAPTIONS), 2 * labels)


def test_metrics_hold_throughput(trained_run):
    for line in (trained_run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)["throughput"]
        assert figures.keys() == FIGURES | {"grad_norm"}
        assert 0 <= figures["data_wait_fraction"] <= 1
        assert all(value >= 0 for value in figures.values())
    assert figures["seconds_left"] == 0
    environment = json.loads((trained_run.folder / "environment.json").read_text())
    assert environment["training_seconds"] >= figures["training_seconds"] - 0.1


def test_chance_is_the_entropy_of_the_learned_tokens(loaded):
    tokenizer = loaded[1].tokenizer
    # a, a, mass, [SEP] and a, [SEP]: a three times, mass once, [SEP] twice
    expected = -(3 / 6 * math.log(3 / 6) + 1 / 6 * math.log(1 / 6) + 2 / 6 * math.log(2 / 6))
    assert TokenizedCaptions.tokenize(tokenizer, ["a a mass", "a"]).entropy(96) == pytest.approx(expected)
    cut = TokenizedCaptions.tokenize(tokenizer, ["a mass mass mass"]).entropy(3)  # of a, [SEP]
    assert cut == pytest.approx(math.log(2))


def evaluate(monitor, state, epoch, loss):
    state.epoch = epoch
    monitor.on_evaluate(SimpleNamespace(), state, None, metrics={"eval_loss": loss})


def test_loss_at_chance_after_the_first_epoch_warns_once(caplog):
    monitor, state = started(chance=5.0)
    evaluate(monitor, state, 0.5, 9.0)
    assert caplog.messages == []
    evaluate(monitor, state, 1, 5.0)
    evaluate(monitor, state, 2, 5.0)
    (warning,) = caplog.messages
    assert warning.startswith("after epoch 1 the validation loss is 5.00, no better than chance: a model")
    assert "\n" not in warning
    assert "Raise learning_rate" in warning


def test_loss_below_chance_does_not_warn(caplog):
    monitor, state = started(chance=5.0)
    evaluate(monitor, state, 1, 4.99)
    assert caplog.messages == []


def end_epoch(monitor, state, eval_strategy="epoch"):
    monitor.on_epoch_end(SimpleNamespace(dataloader_num_workers=2, eval_strategy=eval_strategy), state, None)


def test_training_loss_is_checked_without_evaluation(caplog):
    monitor, state = started(history=[{"loss": 5.5}], chance=5.0)
    state.epoch = 1
    end_epoch(monitor, state)
    assert caplog.messages == []
    end_epoch(monitor, state, "no")
    assert caplog.messages[0].startswith("after epoch 1 the training loss is 5.50, no better than")


WAITING = {"starving": (20, 4, True), "at the threshold": (20, 3, False), "too few steps": (19, 9, False)}


@pytest.mark.parametrize(("steps", "waiting", "warns"), WAITING.values(), ids=WAITING)
def test_slow_data_loading_warns_once(clock, caplog, steps, waiting, warns):
    monitor, state = started()
    for _ in range(2):
        take_steps(monitor, state, clock, steps, waiting=waiting, working=10 - waiting)
        end_epoch(monitor, state)
        evaluate(monitor, state, 1, 0.1)
    expected = [
        "training waits for images 40% of the time (more than 30%): raise dataloader_num_workers, now 2, and use "
        "feature_cache where possible"
    ]
    assert caplog.messages == expected * warns


def test_sameness_reports_identical_captions():
    assert sameness(["a cyst"] * 3).startswith("all 3 captions are the same, 'a cyst': the captions do not depend")
    assert sameness(["a cyst", "a cyst", "a mass"]) == ""
    assert sameness(["a cyst"]) == ""


def test_identical_captions_of_an_evaluation_warn(loaded, caplog, monkeypatch):
    tokenizer = loaded[1].tokenizer
    scored = Scores({}, {}, "", caption_statistics(["a"], [["a b"]]))
    monkeypatch.setattr(caption_metrics, "score_captions", lambda *captions, **settings: scored)
    ids = np.array([tokenizer("a cyst")["input_ids"]] * 2)
    CaptionMetrics(tokenizer, ["R0", "R1"])(EvalPrediction(predictions=ids, label_ids=np.array([0, 1])))
    assert caplog.messages[0].startswith("all 2 captions are the same, 'a cyst'")
