"""One process or several: the same steps, every image scored once, and every line and file written once.

Trap 19. pytest tests/training/test_processes.py
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from conftest import ROOT, write_recipe

from medcap.data.images import DIGEST_BYTES
from medcap.launch import launch_command
from medcap.modeling.feature_store import ENTRY_BYTES
from medcap.recipe import RecipeError, read_recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def results(tiny_base, tmp_path_factory):
    """Return {(world, rank): results of that process}."""
    out = tmp_path_factory.mktemp("processes")
    program = [sys.executable, str(ROOT / "tests" / "training" / "processes.py"), str(tiny_base), str(out)]
    subprocess.run(program, check=True, env=ENVIRONMENT)
    return {(world, rank): torch.load(out / f"{world}-{rank}.pt") for world in (1, 2, 3) for rank in range(world)}


SAME = {
    "two processes": (2, "8", "8"),
    "two processes, accumulated": (2, "8, accumulated", "8"),
    "one process, accumulated": (1, "8, accumulated", "8"),
    "three processes": (3, "9", "9"),  # 10 rows: two processes have none in the last step
}


@pytest.mark.parametrize("sampling", ["group_by_length", "random"])
@pytest.mark.parametrize(("world", "split", "alone"), SAME.values(), ids=SAME)
def test_step_does_not_depend_on_the_number_of_processes(results, world, split, alone, sampling):
    """Loss, gradient and norm of each step of two epochs; the last step of an epoch has 2 rows, or 1."""
    one, several = results[1, 0][alone, sampling], results[world, 0][split, sampling]
    assert len(one["loss"]) == 4
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert several["counted"] == one["counted"]
    assert several["norm"] == pytest.approx(one["norm"], rel=1e-3)
    torch.testing.assert_close(several["gradients"], one["gradients"], rtol=1e-3, atol=1e-4)
    assert one["loss"][0] != pytest.approx(one["loss"][2], rel=1e-3)  # the second epoch has another order


def test_sampled_captions_do_not_depend_on_the_number_of_processes(results):
    """Rewards and gradients of two epochs of self-critical training; the last step of an epoch has 2 rows."""
    one, two = results[1, 0]["scst"], results[2, 0]["scst"]
    assert len(one["rewards"]) == 4
    assert two["rewards"] == pytest.approx(one["rewards"], rel=1e-5)
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [10, 2])
def test_three_processes_score_every_image_once_on_the_main_process(results, images):
    (alone,), (rows, ids) = results[1, 0][images]["scored"], results[3, 0][images]["scored"][0]
    assert rows == list(range(images))
    assert (rows, ids) == alone
    assert [len(results[3, rank][images]["scored"]) for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("images", [10, 2])
def test_every_process_has_the_same_metrics(results, images):
    """All then choose the same best epoch; the loss counts every label once."""
    expected = results[1, 0][images]
    for world in (2, 3):
        metrics = [results[world, rank][images] for rank in range(world)]
        assert [each["images"] for each in metrics] == [images] * world
        assert len({each["loss"] for each in metrics}) == 1
        assert metrics[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@contextmanager
def port_in_use(port):
    with socket.socket() as server:
        with suppress(OSError):  # it is in use already
            server.bind(("127.0.0.1", port))
            server.listen()
        yield


@pytest.fixture(scope="module")
def trained(tiny_base, phantoms, tmp_path_factory):
    """Run `medcap train --accelerate cpu-ddp`; return its folder, stdout and the lines of stderr."""
    folder = tmp_path_factory.mktemp("launched")
    recipe = write_recipe(
        folder / "recipe.yaml", data_dir=str(phantoms), model_name_or_path=str(tiny_base),
        output_dir=str(folder / "run"), feature_cache=str(folder / "features"), num_train_epochs=2, precision="fp32",
        per_device_train_batch_size=3, per_device_eval_batch_size=3, learning_rate=1.0e-5, num_beams=1,
        max_new_tokens=4,
    )  # fmt: skip
    program = launch_command(["--config", str(recipe)], "cpu-ddp")
    with port_in_use(29500):  # accelerate's default, which another training may have
        done = subprocess.run(program, capture_output=True, text=True, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr.replace("\r", "\n").splitlines()


@pytest.mark.slow
def test_two_processes_write_one_run(trained):
    folder, _, _ = trained
    assert {path.name for path in (folder / "run").iterdir()} == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "curves.png", "training.html", "samples", "adapter",
        "checkpoint-2", "checkpoint-4",
    }  # fmt: skip
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]  # 12 images, 2 x 3 per step
    assert json.loads((folder / "run" / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_print_everything_once(trained):
    """Only the main process prints, progress bars included."""
    folder, stdout, stderr = trained
    assert stdout.startswith(f"{folder / 'run' / 'adapter'}: the adapter of checkpoint-")
    assert stdout.count("\n") == 1
    once = (
        "12 training and 6 validation images", "parameters are trainable", "features of the vision encoder",
        "epoch 1: loss", "epoch 2: loss", "after epoch 1 the validation loss is", "decoding train:   0%",
        "training:   0%",
    )  # fmt: skip
    assert {text: sum(text in line for line in stderr) for text in once} == dict.fromkeys(once, 1)
    assert [line for line in stderr if "rank" in line or "Warning" in line] == []


@pytest.mark.slow
def test_two_processes_fill_one_feature_cache(trained):
    """Each of 18 images is encoded by one process."""
    indexes = [path.read_bytes() for path in (trained[0] / "features").rglob("*.idx")]
    digests = [index[start : start + DIGEST_BYTES] for index in indexes for start in range(0, len(index), ENTRY_BYTES)]
    assert len(indexes) == 2
    assert len(digests) == len(set(digests)) == 18


FAILS = """
import os, signal, sys
from medcap.logs import configure_logging, report_errors
configure_logging()
class RecipeError(ValueError): ...
with report_errors():
    import torch
    torch.distributed.init_process_group("gloo")
    if os.environ["RANK"] == "1" and sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "1":
        raise RecipeError("lora_r is 0")
    torch.distributed.all_reduce(torch.ones(1))
"""
ENDINGS = {
    "wrong": (2, "medcap: error: lora_r is 0\n"),
    "killed": (1, "medcap: error: process 1 was ended by SIGKILL; the others were stopped\n"),
}


@pytest.mark.parametrize("cause", ENDINGS)
def test_failure_of_one_process_gives_one_line_and_its_status(tmp_path, cause):
    """The other process prints nothing, or one line that it lost a killed process."""
    (tmp_path / "fails.py").write_text(FAILS, encoding="utf-8")
    program = launch_command([], "cpu-ddp")[:-1]
    done = subprocess.run(
        [*program, str(tmp_path / "fails.py"), cause], capture_output=True, text=True, env=ENVIRONMENT
    )
    status, line = ENDINGS[cause]
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.endswith(line)
    assert done.stderr.count("\n") <= (2 if cause == "killed" else 1)
    assert "Traceback" not in done.stderr


ALONE = {
    "a wrong recipe": ("sys.exit(2)", 2, ""),
    "a handled signal": ("sys.exit(138)", 138, ""),
    "a kill": ("os.kill(os.getpid(), 9)", 137, "medcap: error: the process was ended by SIGKILL\n"),
}


@pytest.mark.parametrize(("code", "status", "line"), ALONE.values(), ids=ALONE)
def test_status_of_a_single_process_is_returned(tmp_path, code, status, line):
    (tmp_path / "ends.py").write_text(f"import os, sys\n{code}\n", encoding="utf-8")
    program = launch_command([], "cpu")[:-1]
    done = subprocess.run([*program, str(tmp_path / "ends.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


STOPS = """
import os, signal, sys, time
from pathlib import Path

def stop(number, frame):
    Path(sys.argv[1], f"stopped-{os.environ.get('RANK', 0)}").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1], f"started-{os.environ.get('RANK', 0)}").touch()
time.sleep(100)
"""
STARTS = "import sys; from medcap.launch import run_launched; sys.exit(run_launched(sys.argv[1:]))"


@pytest.mark.parametrize(("config", "processes"), [("cpu", 1), ("cpu-ddp", 2)])
def test_sigterm_of_the_command_reaches_the_training_processes(tmp_path, config, processes):
    """A command that ended alone would leave them running, with the lock of the run folder."""
    (tmp_path / "stops.py").write_text(STOPS, encoding="utf-8")
    program = [*launch_command([], config)[:-1], str(tmp_path / "stops.py"), str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", STARTS, *program], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as command:
        while len([*tmp_path.glob("started-*")]) < processes and command.poll() is None:
            time.sleep(0.1)
        command.terminate()
        errors = command.communicate(timeout=60)[1]
    assert len([*tmp_path.glob("stopped-*")]) == processes, errors
    assert "Traceback" not in errors
    assert command.returncode == 143


@pytest.mark.parametrize("status", [0, 138])
def test_slurm_starts_every_process_and_requeues_a_job_that_ran_out_of_time(tmp_path, status):
    """Fake scontrol, srun and python: two nodes with two tasks each, ended by SIGUSR1 (128 + 10) or finished."""
    programs = {
        "scontrol": 'if [ "$1" = show ]; then printf "first\\nsecond\\n"; else echo "scontrol $*"; fi',
        "srun": 'shift; for i in 0 1 2 3; do SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) "$@"; done',
        "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $*"; exit {status}',
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    slurm = {"NTASKS": 4, "NTASKS_PER_NODE": 2, "CPUS_PER_TASK": 1, "JOB_ID": 7, "JOB_NODELIST": "first,second"}
    variables = {f"SLURM_{key}": str(value) for key, value in slurm.items()}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / "accelerate" / "slurm.sh"), "--config", "r.yaml"],
        env={**variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    started = [f"{rank} {rank % 2} 4 2 first scripts/train.py --config r.yaml" for rank in range(4)]
    queued = ["scontrol requeue 7"] if status else []
    assert done.stdout.splitlines() == started + queued
    assert (done.returncode, done.stderr) == (status, "")


def test_unsupported_devices_are_refused(train_script, trained_run, monkeypatch):
    recipe = read_recipe(["--config", str(trained_run.recipe)])
    train_script.check_devices(recipe)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="FSDP shards a model over GPUs, and there is none: use "):
        train_script.check_devices(recipe)
    recipe.training._n_gpu = 2
    with pytest.raises(RecipeError, match="2 GPUs but one process: start one process per GPU with `medcap train"):
        train_script.check_devices(recipe)
