"""An interrupted run resumes exactly: signals, early stopping, and a full disk.

SIGKILL at random moments is tested by benchmarks/kills.py, of which tests/training/test_kills.py runs a part.
pytest tests/training/test_resume.py
"""

import json
import os
import resource
import shutil
import signal

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from medcap.data.captions import CaptionCollator
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.training.checkpoints import checkpoints, find_damage, write_checksums
from medcap.training.preemption import PreemptionCallback
from medcap.training.trainer import CaptionTrainer

ROWS, EPOCHS, STEPS = 10, 3, 3  # steps per epoch: 10 images in batches of 2, 2 accumulated, 1 in the last step


@pytest.fixture(scope="module")
def rows():
    """Noise with captions of different lengths."""
    noise = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    text = "axial ct scan of the abdomen with a large left lesion and an arrow".split()
    columns = {
        "pixel_values": noise.numpy(), "caption": [" ".join(text[: 2 + n]) for n in range(ROWS)],
        "row": list(range(ROWS)), "length": [4 + n for n in range(ROWS)],
    }  # fmt: skip
    return Dataset.from_dict(columns).with_format("numpy", columns=["pixel_values"], output_all_columns=True)


class Tensors(CaptionCollator):
    def __call__(self, rows):
        return super().__call__([{**row, "pixel_values": torch.from_numpy(row["pixel_values"])} for row in rows])


@pytest.fixture
def train(loaded, tiny_base, rows):
    """Train in a folder, from a checkpoint or from scratch, with handled signals; return the trainer."""

    def trained(run, checkpoint=None, callbacks=(), **settings):
        model, processor = load_base(str(tiny_base))
        torch.manual_seed(0)
        adapted = add_lora(model, targets="text", r=8, alpha=16, dropout=0.2)
        arguments = {
            "output_dir": str(run), "use_cpu": True, "disable_tqdm": True, "num_train_epochs": EPOCHS, "seed": 0,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.02,
            "logging_steps": 2, "metric_for_best_model": "loss", "restore_callback_states_from_checkpoint": True,
        }  # fmt: skip
        trainer = CaptionTrainer(
            model=adapted,
            args=CaptionTrainingArguments(**{**arguments, **settings}),
            generation_config=family_of(model).make_generation_config(num_beams=1, max_new_tokens=4),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=Tensors(processor.tokenizer, family_of(model).first_token_id, 64),
            processing_class=processor,
            callbacks=list(callbacks),
        )
        signals = PreemptionCallback(trainer)
        trainer.add_callback(signals)
        with signals.handling_signals():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    return trained


class At(TrainerCallback):
    """Call a function once, at an event and step."""

    def __init__(self, event, step, action):
        self.step, self.action = step, action
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.action:
            action, self.action = self.action, None
            action()


def send(number):
    return lambda: os.kill(os.getpid(), number)


def logged_losses(trainer):
    """Return the logged losses, without times."""
    keys = ("loss", "eval_loss", "epoch", "step")
    lines = [{key: line[key] for key in keys if key in line} for line in trainer.state.log_history]
    return [line for line in lines if line.keys() & {"loss", "eval_loss"}]


def assert_same_run(actual, expected):
    """Compare losses, best metric and weights, bit for bit."""
    assert logged_losses(actual) == logged_losses(expected)
    assert actual.state.best_metric == expected.state.best_metric
    weights, expected_weights = actual.model.state_dict(), expected.model.state_dict()
    assert [name for name in expected_weights if not torch.equal(weights[name], expected_weights[name])] == []


@pytest.fixture
def uninterrupted(train, tmp_path):
    return train(tmp_path / "uninterrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_run_stopped_by_a_signal_after_any_step_resumes_exactly(train, uninterrupted, tmp_path, capsys, number):
    """A signal after each step of three epochs, in one run."""
    run, last = tmp_path / "run", None
    for step in range(1, EPOCHS * STEPS + 1):
        with pytest.raises(SystemExit) as ended:
            train(run, last, [At("on_step_end", step, send(number))])
        assert ended.value.code == 128 + number
        last = checkpoints(run)[0]
        assert (last.name, find_damage(last)) == (f"checkpoint-{step}", "")
        stderr = capsys.readouterr().err
        assert f"medcap: stopped by {number.name}; {last} is complete, and the same command resumes from it" in stderr
    assert_same_run(train(run, last), uninterrupted)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run, tmp_path / "uninterrupted")]
    assert names[0] == names[1] == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize("step", [STEPS, EPOCHS * STEPS])
def test_interrupted_evaluation_is_repeated_on_resume(train, uninterrupted, tmp_path, step):
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        train(run, None, [At("on_prediction_step", step, send(signal.SIGTERM))])
    last = checkpoints(run)[0]
    assert last.name == f"checkpoint-{step}"
    assert_same_run(train(run, last), uninterrupted)


def test_postponed_evaluation_is_done_on_resume(train, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    expected, run = train(tmp_path / "uninterrupted", **settings), tmp_path / "run"
    with pytest.raises(SystemExit):
        train(run, None, [At("on_step_end", 4, send(signal.SIGTERM))], **settings)
    assert_same_run(train(run, checkpoints(run)[0], **settings), expected)


def test_second_ctrl_c_exits_at_once(train, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", None, [At("on_step_end", 4, twice)])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]


def test_ended_run_trains_no_step_on_resume(train, tmp_path):
    """Killed after its last checkpoint: by early stopping, and by max_steps in the middle of an epoch."""
    patience = {"greater_is_better": True, "num_train_epochs": 5}
    stopping = train(tmp_path / "a", None, [EarlyStoppingCallback(1)], **patience)
    assert stopping.state.global_step == 2 * STEPS
    again = train(tmp_path / "a", tmp_path / "a" / f"checkpoint-{2 * STEPS}", [EarlyStoppingCallback(1)], **patience)
    assert_same_run(again, stopping)
    short = train(tmp_path / "b", max_steps=4)
    assert_same_run(train(tmp_path / "b", tmp_path / "b" / "checkpoint-4", max_steps=4), short)


def test_early_stopping_restores_its_count(train, tmp_path):
    patience = {"greater_is_better": True, "num_train_epochs": 5}
    expected = train(tmp_path / "a", None, [EarlyStoppingCallback(2)], **patience)
    assert expected.state.global_step == 3 * STEPS
    again = train(tmp_path / "a", tmp_path / "a" / f"checkpoint-{2 * STEPS}", [EarlyStoppingCallback(2)], **patience)
    assert_same_run(again, expected)


def test_save_total_limit_keeps_the_best_and_the_last_checkpoint(train, tmp_path):
    train(tmp_path, greater_is_better=True, save_total_limit=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-3"]


def remove_weights(checkpoint):
    (checkpoint / "adapter_model.safetensors").unlink()
    write_checksums(checkpoint)


@pytest.mark.parametrize("damage", [shutil.rmtree, remove_weights])
def test_best_checkpoint_that_is_lost_while_training_is_an_error(train, tmp_path, damage):
    """The Trainer keeps the last step's weights, without a message."""
    lose = At("on_step_end", 4, lambda: damage(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="checkpoint-3, the best checkpoint, cannot be loaded: .*; no adapter was"):
        train(tmp_path, None, [lose], greater_is_better=True, num_train_epochs=2)


def test_loaded_checkpoint_is_the_best_of_this_run(train, tmp_path):
    """The state of the resumed checkpoint names the weights of another run; its checksums are right."""
    train(tmp_path / "run", num_train_epochs=1)
    last = shutil.copytree(tmp_path / "run" / "checkpoint-3", tmp_path / "elsewhere") and tmp_path / "run/checkpoint-3"
    state = json.loads((last / "trainer_state.json").read_text())
    state |= {"best_global_step": None, "best_model_checkpoint": str(tmp_path / "elsewhere"), "best_metric": -1.0}
    (last / "trainer_state.json").write_text(json.dumps(state))
    trainer = train(tmp_path / "run", last, num_train_epochs=2)
    assert (trainer.best_loaded, trainer.state.best_model_checkpoint) == (None, None)


def test_full_disk_keeps_the_last_checkpoint_and_raises_one_line(train, tmp_path):
    """A file size limit of 20 kB in the second epoch makes safetensors fail as on a full disk."""

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="checkpoint-6 could not be written: File too large.*: checkpoint-3 is unch"):
            train(tmp_path, None, [At("on_step_end", 4, limit_file_size)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(path.name, find_damage(path)) for path in tmp_path.iterdir()] == [("checkpoint-3", "")]


def test_damaged_optimizer_state_names_the_checkpoint(train, tmp_path):
    """The checksums of medcap are not read here: it is the Trainer that fails."""
    train(tmp_path, max_steps=3)
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"checkpoint-3 cannot be used: \w+Error: "):
        train(tmp_path, tmp_path / "checkpoint-3", max_steps=6)


def test_error_of_a_resumed_step_does_not_name_the_checkpoint(train, tmp_path):
    def fail():
        raise KeyError("a step")

    train(tmp_path, max_steps=3)
    with pytest.raises(KeyError, match="a step"):
        train(tmp_path, tmp_path / "checkpoint-3", [At("on_step_end", 4, fail)], max_steps=6)
