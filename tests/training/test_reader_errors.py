"""What happens when memory runs out or numbers are no longer finite: the same step in parts, or a stop that names it.

pytest tests/training/test_faults.py
"""

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
from test_trainer import CAPTIONS, LOSSES, Gradients, losses, make_trainer, rows_of  # noqa: F401

from medcap.data.captions import CaptionCollator
from medcap.modeling.feature_cache import FeatureEncoder
from medcap.training.micro_batches import is_out_of_memory, split_batch
from medcap.training.trainer import CaptionTrainer

HERE = Path(__file__).parent
NO_CUDA_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "9000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Scarce:
    """Lets forward or backward passes of more than `rows` rows fail, as where memory is short; counts their rows."""

    def __init__(self, trainer, rows, where, error=NO_CUDA_MEMORY, from_call=0):
        self.rows, self.where, self.error, self.from_call, self.tried = rows, where, error, from_call, []
        decoder = trainer.model.get_base_model().text_decoder
        decoder.register_forward_pre_hook(self.forward, with_kwargs=True)
        decoder.bert.encoder.layer[0].register_forward_hook(self.half_way)

    def forward(self, module, args, kwargs):
        self.tried.append(len(args[0] if args else kwargs["input_ids"]))
        if self.where == "forward" and self.short():
            raise self.error

    def half_way(self, module, args, output):
        if self.where == "backward" and self.short() and torch.is_grad_enabled():
            output.register_hook(self.fail)  # the last layer has its gradients by then, the first one has not

    def short(self):
        return len(self.tried) > self.from_call and self.tried[-1] > self.rows

    def fail(self, gradient):
        raise self.error


def gradients_of(trainer, keeper):
    trainer.train()
    return losses(trainer), keeper.by_name


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [NO_CUDA_MEMORY, NO_MEMORY], ids=["cuda", "cpu"])
@pytest.mark.parametrize(("batch", "accumulated", "failing"), [(8, 1, 0), (4, 2, 1)], ids=["first", "second"])
def test_a_step_in_parts_is_the_same_step(make_trainer, loaded, capsys, where, error, batch, accumulated, failing):  # noqa: F811
    """Loss and gradient, whether the first micro-batch fails or the second, when the first has left its gradients."""
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0.0}
    whole, parts = Gradients(), Gradients()
    expected = gradients_of(make_trainer(callbacks=[whole], base=copy.deepcopy(loaded), **settings), whole)
    trainer = make_trainer(callbacks=[parts], base=copy.deepcopy(loaded), **settings)
    scarce = Scarce(trainer, rows=2, where=where, error=error, from_call=failing)
    capsys.readouterr()
    loss, gradient = gradients_of(trainer, parts)
    tried = {(8, 1): [8, 4, 2, 2, 2, 2], (4, 2): [4, 4, 2, 2]}[batch, accumulated]
    passed = [rows for rows in scarce.tried if rows <= 2]
    assert sum(passed) == 8 - failing * 4
    assert [rows for rows in scarce.tried if rows > 2] == [rows for rows in tried if rows > 2]
    assert loss == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-3, atol=1e-5)
    said = [line for line in capsys.readouterr().err.splitlines() if "fit" in line]
    sizes = [8, 4] if batch == 8 else [4]
    assert said == [
        f"step 1: {size} images at a time do not fit into memory; going on with {size // 2} at a time and "
        "accumulating more of them: the steps stay the same"
        for size in sizes
    ]


def test_what_fits_is_remembered_and_training_goes_the_same_way(make_trainer):  # noqa: F811
    """The losses of every step, and the order of the examples, are those of a run that had the memory."""
    trainer = make_trainer(max_steps=6, per_device_train_batch_size=4, learning_rate=0.01, warmup_steps=2)
    scarce = Scarce(trainer, rows=3, where="backward", from_call=2)
    trainer.train()
    assert losses(trainer) == pytest.approx(LOSSES, rel=1e-4)
    assert scarce.tried == [4, 4, 4, *[2, 2] * 4]


def test_a_checkpoint_made_in_parts_is_gone_on_with_by_any_device(make_trainer, loaded, tmp_path):  # noqa: F811
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "warmup_steps": 2,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    trainer = make_trainer(base=copy.deepcopy(loaded), **settings)
    Scarce(trainer, rows=1, where="forward")
    trainer.train()
    resumed = make_trainer(base=copy.deepcopy(loaded), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(LOSSES, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_parts_of_a_batch_are_the_batch(blip, rows):
    """Also where some images come as features: each with its own, in order."""
    model, processor = blip
    collate, encode = CaptionCollator(processor.tokenizer, 1, 64), FeatureEncoder(model.vision_model)
    pictures = rows_of()
    for place in (0, 3, 4, 6):
        pixels = pictures[place]["pixel_values"][None]
        pictures[place] |= {"features": encode({"pixel_values": pixels})[0], "pixel_values": None}
    batch = collate(
        [{"features": None, **row, "digest": bytes([at] * 16), "row": at} for at, row in enumerate(pictures)]
    )
    parts = list(split_batch(batch, rows))
    assert [len(part["labels"]) for part in parts] == [len(some) for some in torch.arange(8).split(rows)]
    for name in ("input_ids", "attention_mask", "labels", "row"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    together = torch.cat([encode(part) for part in parts])
    torch.testing.assert_close(together, encode(batch), rtol=1e-4, atol=1e-5)


def test_a_batch_that_fits_is_not_touched(blip):
    batch = CaptionCollator(blip[1].tokenizer, 1, 64)(rows_of())
    (part,) = split_batch(batch, 8)
    assert part is batch


def test_what_torch_raises_here_when_memory_ends_is_known_as_such():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_not_even_one_image_ends_with_status_1_and_one_line(trained_run, train_script, capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NO_CUDA_MEMORY

    monkeypatch.setattr(CaptionTrainer, "compute_loss", fail)
    status, line = last_line(train_script, capsys, trained_run, tmp_path / "run")
    assert status == 1
    assert line.startswith("medcap: error: not even one image at a time fits into memory at step 1: lower image_size")


def last_line(train_script, capsys, run, folder, *words):
    """Status and last line of stderr; nothing on stdout."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train_script.main(["--config", str(run.recipe), "--output_dir", str(folder), "--disable_tqdm", "true", *words])
    said = capsys.readouterr()
    assert said.out == ""
    return ended.value.code, said.err.splitlines()[-1]


def test_two_processes_take_parts_each_for_itself(tmp_path):
    """One of two is short of memory, in the forward or half-way in the backward pass: the weights stay the same."""
    port = 20_000 + os.getpid() % 20_000
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [json.loads(one.communicate(timeout=100)[0].splitlines()[-1]) for one in started]
    finally:
        for one in started:
            one.kill()
    for first, second in zip(*said, strict=True):
        assert first["weights"] == pytest.approx(second["weights"], rel=1e-6)  # the processes agree
    undisturbed, *disturbed = said[1]
    assert undisturbed["tried"] == [4, 4, 4]
    assert [one["tried"] for one in disturbed] == [[4, 2, 2, 2, 2, 2, 2]] * 2
    for one in disturbed:
        assert one["weights"] == pytest.approx(undisturbed["weights"], rel=1e-4)
        assert one["losses"] == pytest.approx(undisturbed["losses"], rel=1e-4)
    assert undisturbed["weights"][0] != pytest.approx(undisturbed["weights"][-1], rel=1e-3)


# --- numbers that are not finite ---


@pytest.fixture
def nan_at(monkeypatch):
    """Let the loss of a step be nan."""
    compute = CaptionTrainer.compute_loss

    def spoil(step):
        def spoilt(self, *args, **kwargs):
            loss = compute(self, *args, **kwargs)
            return loss * float("nan") if self.state.global_step == step - 1 and self.model.training else loss

        monkeypatch.setattr(CaptionTrainer, "compute_loss", spoilt)

    return spoil


def test_a_nan_names_step_and_images_and_the_run_goes_on_from_its_last_checkpoint(
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
def test_gradients_that_are_not_finite_stop_before_the_weights_change(make_trainer, max_grad_norm, value):  # noqa: F811
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


def test_in_float16_the_scaler_leaves_such_a_step_out(make_trainer):  # noqa: F811
    trainer = make_trainer()
    trainer.rows_of_step = [0]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.grad = torch.full_like(weight, float("inf"))
    trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    assert trainer.rows_of_step == []


def test_weights_that_are_not_finite_do_not_become_a_checkpoint(make_trainer, tmp_path):  # noqa: F811
    trainer = make_trainer(max_steps=2, learning_rate=float("inf"), save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"lora_A.* is not finite after step 1\. There is no checkpoint yet"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_the_ids_are_those_of_the_rows(make_trainer):  # noqa: F811
    trainer = make_trainer()
    with pytest.raises(FloatingPointError, match=r"image_id i7, i0;"):
        trainer.stop_non_finite("x", [7, 0])
    assert len(CAPTIONS) == 8
