"""A run that was cut short goes on as if nothing had been: signals, kills, faults, and what changed meanwhile.

SIGKILL itself, at random moments: benchmarks/kills.py, of which tests/training/test_kills.py runs a few.
pytest tests/training/test_resume.py
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal

import pytest
import torch
from conftest import write_recipe
from datasets import Dataset
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from medcap.data.captions import CaptionCollator
from medcap.data.images import ImageTransform
from medcap.modeling.blip import first_token_id, load_blip, make_generation_config
from medcap.modeling.lora import add_lora
from medcap.phantom.dataset import write_phantom
from medcap.recipe import CaptionTrainingArguments, RecipeError, read_recipe
from medcap.training.checkpoints import checkpoints, find_damage
from medcap.training.preemption import PreemptionCallback
from medcap.training.resume import checkpoint_to_resume, environment_changes, recipe_changes
from medcap.training.run_folder import remove_leftovers
from medcap.training.trainer import CaptionTrainer

ROWS, EPOCHS, STEPS = 10, 3, 3  # steps of an epoch: 10 images in batches of 2, twice accumulated, the last step of one


@pytest.fixture(scope="module")
def rows():
    """Noise with captions of different lengths."""
    noise = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = "axial ct scan of the abdomen with a large left lesion and an arrow".split()
    columns = {
        "pixel_values": noise.numpy(), "caption": [" ".join(words[: 2 + n]) for n in range(ROWS)],
        "row": list(range(ROWS)), "length": [4 + n for n in range(ROWS)],
    }  # fmt: skip
    return Dataset.from_dict(columns).with_format("numpy", columns=["pixel_values"], output_all_columns=True)


class Tensors(CaptionCollator):
    def __call__(self, rows):
        return super().__call__([{**row, "pixel_values": torch.from_numpy(row["pixel_values"])} for row in rows])


@pytest.fixture
def train(loaded, tiny_base, rows):
    """Trains in a folder, from a checkpoint or the start, and returns the trainer; signals are handling_signals."""

    def trained(run, checkpoint=None, callbacks=(), **settings):
        model, processor = load_blip(str(tiny_base))
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
            generation_config=make_generation_config(model, num_beams=1, max_new_tokens=4),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=Tensors(processor.tokenizer, first_token_id(model), 64),
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
    """Does something once, at an event and step."""

    def __init__(self, event, step, action):
        self.step, self.action = step, action
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.action:
            action, self.action = self.action, None
            action()


def send(number):
    return lambda: os.kill(os.getpid(), number)


def told(trainer):
    """What training said of its losses, without times."""
    kept = ("loss", "eval_loss", "epoch", "step")
    lines = [{key: line[key] for key in kept if key in line} for line in trainer.state.log_history]
    return [line for line in lines if line.keys() & {"loss", "eval_loss"}]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same_run(found, expected):
    """Losses, the state at the end, the names of all checkpoints and their weights, bit for bit."""
    assert told(found) == told(expected)
    assert found.state.best_metric == expected.state.best_metric
    ours, theirs = found.model.state_dict(), expected.model.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture
def undisturbed(train, tmp_path):
    return train(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_run_stopped_by_a_signal_after_any_step_goes_on_exactly(train, undisturbed, tmp_path, capsys, number):
    """Each step of three epochs in turn, in one run: within an epoch, at its end and at the very end."""
    run, last = tmp_path / "run", None
    for step in range(1, EPOCHS * STEPS + 1):
        with pytest.raises(SystemExit) as ended:
            train(run, last, [At("on_step_end", step, send(number))])
        assert ended.value.code == 128 + number
        last = checkpoints(run)[0]
        assert (last.name, find_damage(last)) == (f"checkpoint-{step}", "")
        said = capsys.readouterr().err
        assert f"medcap: stopped by {number.name}; {last} is complete, and the same command resumes from it" in said
    assert_same_run(train(run, last), undisturbed)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run, tmp_path / "undisturbed")]
    assert names[0] == names[1] == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize("step", [STEPS, EPOCHS * STEPS])
def test_an_evaluation_is_left_and_made_when_the_run_goes_on(train, undisturbed, tmp_path, step):
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        train(run, None, [At("on_prediction_step", step, send(signal.SIGTERM))])
    last = checkpoints(run)[0]
    assert last.name == f"checkpoint-{step}"
    assert_same_run(train(run, last), undisturbed)


def test_an_evaluation_that_is_due_at_a_step_is_made_when_the_run_goes_on(train, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    expected, run = train(tmp_path / "undisturbed", **settings), tmp_path / "run"
    with pytest.raises(SystemExit):
        train(run, None, [At("on_step_end", 4, send(signal.SIGTERM))], **settings)
    assert_same_run(train(run, checkpoints(run)[0], **settings), expected)


def test_a_second_ctrl_c_leaves_at_once(train, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", None, [At("on_step_end", 4, twice)])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]


def test_a_run_that_had_ended_trains_no_further(train, tmp_path):
    """Killed after its last checkpoint: by early stopping, and by max_steps in the middle of an epoch."""
    patience = {"greater_is_better": True, "num_train_epochs": 5}
    stopping = train(tmp_path / "a", None, [EarlyStoppingCallback(1)], **patience)
    assert stopping.state.global_step == 2 * STEPS
    again = train(tmp_path / "a", tmp_path / "a" / f"checkpoint-{2 * STEPS}", [EarlyStoppingCallback(1)], **patience)
    assert_same_run(again, stopping)
    short = train(tmp_path / "b", max_steps=4)
    assert_same_run(train(tmp_path / "b", tmp_path / "b" / "checkpoint-4", max_steps=4), short)


def test_early_stopping_remembers_worse_evaluations(train, tmp_path):
    patience = {"greater_is_better": True, "num_train_epochs": 5}
    expected = train(tmp_path / "a", None, [EarlyStoppingCallback(2)], **patience)
    assert expected.state.global_step == 3 * STEPS
    again = train(tmp_path / "a", tmp_path / "a" / f"checkpoint-{2 * STEPS}", [EarlyStoppingCallback(2)], **patience)
    assert_same_run(again, expected)


def test_the_best_checkpoint_stays_within_the_limit_and_the_last_one_to_the_end(train, tmp_path):
    train(tmp_path, greater_is_better=True, save_total_limit=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-3"]


def test_a_disk_that_is_full_leaves_the_last_checkpoint_and_one_line(train, tmp_path):
    """No file may grow beyond 20 kB in the second epoch: safetensors fails as it does on a full disk."""

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="checkpoint-6 could not be written: .*File too large.*; checkpoint-3 is"):
            train(tmp_path, None, [At("on_step_end", 4, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(path.name, find_damage(path)) for path in tmp_path.iterdir()] == [("checkpoint-3", "")]


# --- from one command to the next ---


@pytest.fixture
def recipe_in(trained_run):
    """The recipe of the trained run, for another folder, with other keys."""

    def make(folder, **keys):
        recipe = read_recipe(["--config", str(trained_run.recipe)])
        training = dataclasses.replace(recipe.training, output_dir=str(folder), **keys)
        return dataclasses.replace(recipe, training=training)

    return make


@pytest.fixture
def cut_short(trained_run, tmp_path):
    """A copy of the trained run as a kill after its last checkpoint leaves it."""
    run = tmp_path / "cut short"
    shutil.copytree(trained_run.folder, run)
    shutil.rmtree(run / "adapter")
    return run


def spoil(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"torn")


def test_the_same_command_goes_on_from_the_newest_checkpoint_and_says_so(recipe_in, cut_short, caplog):
    assert checkpoint_to_resume(recipe_in(cut_short)) == str(cut_short / "checkpoint-6")
    assert caplog.messages == [f"the run goes on from {cut_short / 'checkpoint-6'}"]


def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(recipe_in, cut_short, caplog):
    spoil(cut_short / "checkpoint-6")
    assert checkpoint_to_resume(recipe_in(cut_short)) == str(cut_short / "checkpoint-3")
    assert len(caplog.messages) == 1
    assert "checkpoint-6 is not whole (optimizer.pt has 4 bytes of" in caplog.text
    assert "; the run goes on from checkpoint-3" in caplog.text


def test_with_no_whole_checkpoint_the_run_starts_over_unless_one_was_asked_for(recipe_in, cut_short, caplog):
    for number in (3, 6):
        spoil(cut_short / f"checkpoint-{number}")
    assert checkpoint_to_resume(recipe_in(cut_short)) is None
    assert "no checkpoint is left, and the run starts over" in caplog.text
    for wanted in ("last", str(cut_short / "checkpoint-6")):
        with pytest.raises(RecipeError, match=r"checkpoint-6 is not whole \(optimizer.pt has .*name another one"):
            checkpoint_to_resume(recipe_in(cut_short, resume_from_checkpoint=wanted))


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(recipe_in, cut_short):
    for number in (3, 6):
        shutil.rmtree(cut_short / f"checkpoint-{number}")
    assert checkpoint_to_resume(recipe_in(cut_short, learning_rate=1.0)) is None


def test_another_recipe_is_refused_by_its_key_unless_allowed(recipe_in, cut_short, caplog):
    other = recipe_in(cut_short, learning_rate=0.01)
    with pytest.raises(RecipeError, match=r"begun otherwise: learning_rate was 0.02 and is 0.01; .*--allow_changes"):
        checkpoint_to_resume(other)
    allowed = recipe_in(cut_short, learning_rate=0.01, allow_changes=True)
    assert checkpoint_to_resume(allowed) == str(cut_short / "checkpoint-6")
    assert "goes on with changes: learning_rate was 0.02 and is 0.01" in caplog.text


def test_where_a_run_lies_and_how_it_is_read_may_change(recipe_in, cut_short, tmp_path):
    free = recipe_in(tmp_path / "elsewhere", dataloader_num_workers=2, disable_tqdm=True, push_to_hub=True)
    assert recipe_changes(cut_short / "recipe.yaml", free) == []


def test_a_default_that_is_spelt_out_is_no_change(cut_short):
    words = ["--config", str(cut_short / "recipe.yaml"), "--weight_decay", "0", "--save_strategy", "epoch"]
    assert recipe_changes(cut_short / "recipe.yaml", read_recipe(words)) == []
    words[3] = "0.5"
    assert recipe_changes(cut_short / "recipe.yaml", read_recipe(words)) == ["weight_decay was 0.0 and is 0.5"]


THEN = {
    "data": {"train": {"rows": 12, "fingerprint": "a", "images": "b"}},
    "precision": "fp32", "processes": 1, "base": "c",
}  # fmt: skip
CHANGES = {
    "captions": ({"data": {"train": {"rows": 12, "fingerprint": "x", "images": "b"}}}, "train split has other data"),
    "rows": ({"data": {"train": {"rows": 13, "fingerprint": "x", "images": "x"}}}, r"\(12 images then, 13 now\)"),
    "images": ({"data": {"train": {"rows": 12, "fingerprint": "a", "images": "x"}}}, "train split has other images"),
    "precision": ({"precision": "bf16", "base": "x"}, "^precision was fp32 and is bf16$"),
    "processes": ({"processes": 2}, "^processes was 1 and is 2$"),
    "base": ({"base": "x"}, "^the base model has other weights$"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_what_changed_since_the_run_began_is_named(change, said):
    assert environment_changes(THEN, THEN) == []
    (found,) = environment_changes(THEN, {**THEN, **change})
    assert re.search(said, found)


def command(train_script, run, *words):
    """Status and stderr of training in this process, as the recipe of `run` has it, in `run`."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            train_script.main(["--config", str(run / "recipe.yaml"), "--output_dir", str(run), *map(str, words)])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    assert "Traceback" not in said.getvalue()
    return status, said.getvalue()


def test_a_data_set_an_image_and_a_base_that_changed_are_refused_with_status_2(
    train_script, trained_run, cut_short, phantoms, tiny_base, tmp_path
):
    """Each under the name that the recipe has, so that only its content tells."""
    data, base = tmp_path / "data", tmp_path / "base"
    unpacked(phantoms, data)
    shutil.copytree(tiny_base, base)
    recipe = read_recipe(["--config", str(cut_short / "recipe.yaml")]).as_dict()
    moved = {**recipe, "data_dir": str(data), "model_name_or_path": str(base), "output_dir": str(cut_short)}
    write_recipe(cut_short / "recipe.yaml", **moved)
    swap_images(data)
    status, said = command(train_script, cut_short)
    assert (status, "the train split has other images; take another" in said) == (2, True), said
    shutil.rmtree(data)
    write_phantom(data, train=13, valid=6, test=6, seed=1)
    model, _ = load_blip(str(base))
    model.text_decoder.cls.predictions.bias.data[0] += 1
    model.save_pretrained(base)
    status, said = command(train_script, cut_short)
    assert status == 2
    assert "train split has other data (12 images then, 13 now)" in said
    assert "the base model has other weights; take another --output_dir, or go on all the same with --allow_ch" in said
    assert json.loads((cut_short / "environment.json").read_text())["data"]["train"]["rows"] == 12  # untouched


def unpacked(phantoms, data):
    """A copy of the phantoms whose training images are files; returns these."""
    shutil.copytree(phantoms, data)
    shutil.unpack_archive(data / "train_images.zip", data / "train_images")
    (data / "train_images.zip").unlink()
    return images_of(data)


def images_of(data):
    return sorted((data / "train_images" / "train").iterdir())


def swap_images(data):
    first, second = images_of(data)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_stops_the_run_by_its_id(
    train_script, trained_run, phantoms, tmp_path, monkeypatch, workers
):
    data, run = tmp_path / "data", tmp_path / "run"
    image = unpacked(phantoms, data)[0]
    run.mkdir()
    recipe = read_recipe(["--config", str(trained_run.recipe)]).as_dict()
    write_recipe(run / "recipe.yaml", **{**recipe, "data_dir": str(data), "feature_cache": "off"})
    make_trainer = train_script.make_trainer

    def then_one_breaks(*args):
        image.write_bytes(b"no image any more")
        return make_trainer(*args)

    monkeypatch.setattr(train_script, "make_trainer", then_one_breaks)
    status, said = command(train_script, run, "--dataloader_num_workers", workers)
    assert status == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"medcap: error: image_id {image.stem}: cannot read image")
    assert last.endswith("it could be read when the run began; mend it, then the same command goes on from the last "
                         "checkpoint")  # fmt: skip


def test_a_worker_that_is_killed_ends_the_run_in_one_line(train_script, trained_run, tmp_path, monkeypatch):
    read = ImageTransform.__call__

    def killed(self, batch):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, batch)

    monkeypatch.setattr(ImageTransform, "__call__", killed)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained_run.recipe, run / "recipe.yaml")
    status, said = command(train_script, run, "--dataloader_num_workers", 1)
    assert status == 1
    last = said.splitlines()[-1]
    assert re.match(
        r"medcap: error: process \d+, which reads images, was killed; the kernel does that when memory", last
    )
    assert "lower dataloader_num_workers or the batch size, then the same command goes on" in last
    assert not (run / "adapter").exists()


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    for name in (
        "checkpoint-3.part",
        "checkpoint-3.old.part",
        "adapter.part",
        "pushes/epoch-1.run",
        "pushes/epoch-1.part",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl.part").touch()
    (tmp_path / "checkpoint-3").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "pushes"]
    assert not list((tmp_path / "pushes").iterdir())
