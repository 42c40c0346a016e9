"""Micro-batches are split when memory runs out, and a non-finite loss or gradient stops the run.

pytest tests/training/test_micro_batches.py
"""
# ruff: noqa: F401, F811  fixtures of test_trainer

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import assert_same_weights
from test_trainer import LOSSES, Gradients, losses, make_trainer, rows_of

from medcap.data.captions import CaptionCollator
from medcap.modeling.families import family_of
from medcap.modeling.feature_cache import FeatureEncoder
from medcap.training.micro_batches import is_out_of_memory, split_batch
from medcap.training.trainer import CaptionTrainer

HERE = Path(__file__).parent
NO_CUDA_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "9000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class OutOfMemory:
    """Make forward or backward passes of more than `rows` rows fail; record the rows of each pass."""

    def __init__(self, trainer, rows, where, error=NO_CUDA_MEMORY, from_call=0):
        self.rows, self.where, self.error, self.from_call, self.tried = rows, where, error, from_call, []
        decoder = trainer.model.get_base_model().text_decoder
        decoder.register_forward_pre_hook(self.forward, with_kwargs=True)
        decoder.bert.encoder.layer[0].register_forward_hook(self.register_failure)

    def forward(self, module, args, kwargs):
        self.tried.append(len(args[0] if args else kwargs["input_ids"]))
        if self.where == "forward" and self.is_too_large():
            raise self.error

    def register_failure(self, module, args, output):
        if self.where == "backward" and self.is_too_large() and torch.is_grad_enabled():
            output.register_hook(self.fail)  # the last layer then has its gradients, the first one does not

    def is_too_large(self):
        return len(self.tried) > self.from_call and self.tried[-1] > self.rows

    def fail(self, gradient):
        raise self.error


def train_with(trainer, gradients):
    trainer.train()
    return losses(trainer), gradients.by_name


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [NO_CUDA_MEMORY, NO_MEMORY], ids=["cuda", "cpu"])
@pytest.mark.parametrize(("batch", "accumulated", "failing"), [(8, 1, 0), (4, 2, 1)], ids=["first", "second"])
def test_split_step_is_the_same_step(make_trainer, loaded, capsys, where, error, batch, accumulated, failing):
    """Loss and gradient are equal if the first micro-batch fails, or the second, which adds to earlier gradients."""
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0.0}
    complete, parts = Gradients(), Gradients()
    expected = train_with(make_trainer(callbacks=[complete], base=copy.deepcopy(loaded), **settings), complete)
    trainer = make_trainer(callbacks=[parts], base=copy.deepcopy(loaded), **settings)
    limited = OutOfMemory(trainer, rows=2, where=where, error=error, from_call=failing)
    capsys.readouterr()
    loss, gradient = train_with(trainer, parts)
    tried = {(8, 1): [8, 4, 2, 2, 2, 2], (4, 2): [4, 4, 2, 2]}[batch, accumulated]
    passed = [rows for rows in limited.tried if rows <= 2]
    assert sum(passed) == 8 - failing * 4
    assert [rows for rows in limited.tried if rows > 2] == [rows for rows in tried if rows > 2]
    assert loss == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-3, atol=1e-5)
    printed = [line for line in capsys.readouterr().err.splitlines() if "fit" in line]
    sizes = [8, 4] if batch == 8 else [4]
    assert printed == [
        f"step 1: {size} images at a time do not fit into memory; continuing with {size // 2} at a time and "
        "accumulating more of them: the steps stay the same"
        for size in sizes
    ]


def test_size_that_fits_is_reused_and_losses_are_unchanged(make_trainer):
    """The losses of every step are those of a run with enough memory."""
    trainer = make_trainer(max_steps=6, per_device_train_batch_size=4, learning_rate=0.01, warmup_steps=2)
    limited = OutOfMemory(trainer, rows=3, where="backward", from_call=2)
    trainer.train()
    assert losses(trainer) == pytest.approx(LOSSES, rel=1e-4)
    assert limited.tried == [4, 4, 4, *[2, 2] * 4]


def test_checkpoint_of_a_split_step_resumes_with_more_memory(make_trainer, loaded, tmp_path):
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "warmup_steps": 2,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    trainer = make_trainer(base=copy.deepcopy(loaded), **settings)
    OutOfMemory(trainer, rows=1, where="forward")
    trainer.train()
    resumed = make_trainer(base=copy.deepcopy(loaded), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(LOSSES, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_parts_of_a_batch_add_up_to_the_batch(blip, rows):
    """Also if some images are cached features: each row has its own, in order."""
    processor = blip[1]
    collate, encode = CaptionCollator(processor.tokenizer, 1, 64), FeatureEncoder(family_of(*blip))
    images = rows_of()
    for number in (0, 3, 4, 6):
        pixels = images[number]["pixel_values"][None]
        images[number] |= {"features": encode({"pixel_values": pixels})[0], "pixel_values": None}
    batch = collate(
        [{"features": None, **row, "digest": bytes([number] * 16), "row": number} for number, row in enumerate(images)]
    )
    parts = list(split_batch(batch, rows))
    assert [len(part["labels"]) for part in parts] == [len(split) for split in torch.arange(8).split(rows)]
    for name in ("input_ids", "attention_mask", "labels", "row"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    together = torch.cat([encode(part) for part in parts])
    torch.testing.assert_close(together, encode(batch), rtol=1e-4, atol=1e-5)


def test_batch_that_fits_is_unchanged(blip):
    batch = CaptionCollator(blip[1].tokenizer, 1, 64)(rows_of())
    (part,) = split_batch(batch, 8)
    assert part is batch


def test_error_of_torch_on_this_system_is_recognized_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_one_image_that_does_not_fit_is_an_error(trained_run, train_script, capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NO_CUDA_MEMORY

    monkeypatch.setattr(CaptionTrainer, "compute_loss", fail)
    status, line = last_line(train_script, capsys, trained_run, tmp_path / "run")
    assert status == 1
    assert line.startswith("medcap: error: not even one image at a time fits into memory at step 1: lower image_size")


def last_line(train_script, capsys, run, folder):
    """Return the status and the last line of stderr; stdout is empty."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train_script.main(["--config", str(run.recipe), "--output_dir", str(folder), "--disable_tqdm", "true"])
    printed = capsys.readouterr()
    assert printed.out == ""
    return ended.value.code, printed.err.splitlines()[-1]


def test_two_processes_split_independently(tmp_path):
    """One of two runs out of memory, in the forward or backward pass: the weights are those of an undisturbed run."""
    port = 20_000 + os.getpid() % 20_000
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for first, second in zip(*results, strict=True):
        assert first["weights"] == pytest.approx(second["weights"], rel=1e-6)  # the processes agree
    undisturbed, *disturbed = results[1]
    assert undisturbed["tried"] == [4, 4, 4]
    assert [one["tried"] for one in disturbed] == [[4, 2, 2, 2, 2, 2, 2]] * 2
    for one in disturbed:
        assert one["weights"] == pytest.approx(undisturbed["weights"], rel=1e-4)
        assert one["losses"] == pytest.approx(undisturbed["losses"], rel=1e-4)
    assert undisturbed["weights"][0] != pytest.approx(undisturbed["weights"][-1], rel=1e-3)


@pytest.fixture
def nan_at(monkeypatch):
    """Return a function that makes the loss of a step nan."""
    compute = CaptionTrainer.compute_loss

    def patch(step):
        def nan_loss(self, *args, **kwargs):
            loss = compute(self, *args, **kwargs)
            return loss * float("nan") if self.state.global_step == step - 1 and self.model.training else loss

        monkeypatch.setattr(CaptionTrainer, "compute_loss", nan_loss)

    return patch


def test_nan_names_step_and_images_and_the_run_resumes_from_its_last_checkpoint(
    trained_run, train_script, capsys, tmp_path, nan_at
):
    run, compute = tmp_path / "run", CaptionTrainer.compute_loss
    nan_at(5)
    status, line = last_line(train_script, capsys, trained_run, run)
    assert status == 1
    assert line.startswith("medcap: error: the loss became nan at step 5, image_id PHANTOM_train_0000")
    assert line.count("PHANTOM_train_") == 4  # the batch
    assert "no weight was changed. checkpoint-3 is unchanged: lower learning_rate" in line
    assert not (run / "adapter").exists()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr(CaptionTrainer, "compute_loss", compute)
        train_script.main(["--config", str(run / "recipe.yaml"), "--resume_from_checkpoint", "last"])
    last = "checkpoint-6/adapter_model.safetensors"
    assert_same_weights(load_file(run / last), load_file(trained_run.folder / last))


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_non_finite_gradients_stop_before_the_weights_change(make_trainer, max_grad_norm, value):
    trainer = make_trainer(max_grad_norm=max_grad_norm, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    next(iter(weights.values())).register_hook(lambda gradient: gradient + value)
    with pytest.raises(
        FloatingPointError, match=r"the norm of the gradients became (inf|nan) at step 1, image_id i"
    ) as e:
        trainer.train()
    assert str(e.value).partition(";")[0].count(", i") == 4  # the images of both micro-batches
    assert "There is no checkpoint yet" in str(e.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


def test_float16_scaler_skips_a_step_with_non_finite_gradients(make_trainer):
    trainer = make_trainer()
    trainer.rows_of_step = [0]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.grad = torch.full_like(weight, float("inf"))
    trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    assert trainer.rows_of_step == []


def test_non_finite_weights_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, learning_rate=float("inf"), save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"lora_A.* is not finite after step 1\. There is no checkpoint yet"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_error_names_the_image_ids_of_the_rows(make_trainer):
    trainer = make_trainer()
    with pytest.raises(FloatingPointError, match=r"image_id i7, i0;"):
        trainer.stop_non_finite("x", [7, 0])
