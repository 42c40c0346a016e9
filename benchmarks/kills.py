"""Kill training runs with SIGKILL, resume them with the same command, and compare them with an uninterrupted run.

    python benchmarks/kills.py [--kills 100] [--points 20] [--from N] [--seed S] [--epochs 3]

--kills N runs are killed after a random time, uniform over the duration of the uninterrupted run. --points N runs are
killed just before a random file operation (open, rename, remove) in the run folder, which covers every moment of a
write. Half of the resumed runs are killed again. These must be equal bit for bit: the adapter, metrics.jsonl except
for times, samples, the loss of each step, and the names of all files.

All processes are forked from this one after the libraries are imported and before anything is computed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = Path(tempfile.mkdtemp(prefix="medcap-kills-"))
os.environ.update(HF_DATASETS_CACHE=str(WORK / "cache"), XDG_CACHE_HOME=str(WORK / "cache"), HF_HUB_OFFLINE="1")
sys.path.insert(0, str(ROOT))

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
TIMES = ("runtime", "per_second", "throughput", "data_wait_fraction", "_seconds", "seconds_left", "_gb")
KILL_AGAIN = 0.5  # probability that a resumed run is killed again


def main() -> None:
    """Print one line per run and a summary; exit with status 1 if a resumed run differs."""
    args = parse()
    script = load_script()
    try:
        run_forked(prepare)
        clean = WORK / "uninterrupted"
        seconds, events = -time.monotonic(), WORK / "events"
        run_forked(lambda: (count_operations(events, clean), train(script, clean, args.epochs)))
        seconds += time.monotonic()
        points = int(events.read_text())
        expected = run_digest(clean)
        print(
            f"uninterrupted run: {seconds:.1f} s, {points} file operations, {len(expected['names'])} files", flush=True
        )
        results = {number: kill_and_resume(script, number, args, seconds, points, expected) for number in args.numbers}
        different = [number for number, (same, _) in results.items() if not same]
        kills = sum(count for _, count in results.values())
        print(f"{len(results)} runs, {kills} kills, {len(different)} differ{': ' * bool(different)}{different or ''}")
        sys.exit(bool(different))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="runs killed after a random time")
    parser.add_argument("--points", type=int, default=0, help="runs killed at a random file operation")
    parser.add_argument(
        "--from", dest="first", type=int, default=0, help="number of the first run, to continue an earlier series"
    )
    parser.add_argument("--seed", type=int, default=0, help="selects the moments, together with the number of the run")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    args = parser.parse_args()
    args.numbers = range(args.first, args.first + args.kills + args.points)
    return args


def load_script() -> Any:
    """Import scripts/train.py and its dependencies without computing anything."""
    from speed.ours import train_script  # imported here because it reads the cache variables above

    script = train_script()
    gc.freeze()  # so that garbage collection in a fork skips imported modules
    return script


def run_forked(work: Callable[[], Any], kill: Callable[[int], None] | None = None) -> int:
    """Call `work` in a forked process and `kill(pid)` in this one; return its exit status, negative for a signal.

    Without `kill`, RuntimeError if the status is not 0.
    """
    pid = os.fork()
    if pid == 0:
        log = os.open(WORK / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    if kill is not None:
        kill(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if kill is None and status:
        raise RuntimeError(f"status {status}: {(WORK / 'log').read_text()[-2000:]}")
    return status


def prepare() -> None:
    """Write synthetic data and a tiny base."""
    from medcap.phantom import TINY_BASE
    from medcap.phantom.dataset import write_phantom

    write_phantom(WORK / "data", train=20, valid=6, test=2, seed=0)
    shutil.copytree(TINY_BASE, WORK / "base")


def recipe(run: Path) -> list[str]:
    """Return the argv of a run: five steps of four images per epoch, with dropout, accumulation and logging."""
    keys: dict[str, Any] = {
        "data_dir": WORK / "data", "model_name_or_path": WORK / "base", "output_dir": run, "lora_dropout": 0.1,
        "feature_cache": run.with_name(run.name + "-features"), "precision": "fp32",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4,
        "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.01, "logging_steps": 3,
        "num_beams": 1, "max_new_tokens": 12, "use_cpu": True, "save_total_limit": 2,
    }  # fmt: skip
    return [argument for key, value in keys.items() for argument in (f"--{key}", str(value))]


def train(script: Any, run: Path, epochs: int) -> None:
    script.main([*recipe(run), "--num_train_epochs", str(epochs)])


def count_operations(events: Path, run: Path) -> None:
    """Write the number of file operations in `run` so far to `events`, at each operation."""

    def write(number: int) -> None:
        file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, str(number).encode())
        os.close(file)

    before_each_operation(run, write)


def kill_at(point: int, run: Path) -> None:
    """Kill this process before file operation number `point` in `run`."""
    before_each_operation(run, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == point else None)


def before_each_operation(run: Path, act: Callable[[int], None]) -> None:
    """Call `act` with the number (from 1) of each file operation in `run`, before the operation."""
    number = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal number
        if is_in_run(event, args, run):
            number += 1
            act(number)

    sys.addaudithook(hook)


def is_in_run(event: str, args: tuple[Any, ...], run: Path) -> bool:
    return event in WATCHED and bool(args) and isinstance(args[0], (str, Path)) and str(args[0]).startswith(f"{run}/")


def kill_and_resume(
    script: Any, number: int, args: argparse.Namespace, seconds: float, points: int, expected: dict[str, Any]
) -> tuple[bool, int]:
    """Kill run `number` at least once and resume it; return whether it equals `expected`, and the number of kills."""
    rng, run = random.Random(f"{args.seed}:{number}"), WORK / f"run-{number}"
    by_time, moments, kills = number - args.first < args.kills, [], 0
    while True:
        moment = rng.uniform(0, seconds) if by_time else float(rng.randint(1, points))
        moments.append(f"{moment:.2f} s" if by_time else f"operation {moment:.0f}")
        if by_time:
            status = run_forked(lambda: train(script, run, args.epochs), lambda pid: kill_later(pid, moment))  # noqa: B023
        else:
            status = run_forked(lambda: (kill_at(int(moment), run), train(script, run, args.epochs)), lambda pid: None)  # noqa: B023
        kills += status == -signal.SIGKILL
        if status >= 0 or rng.random() > KILL_AGAIN:
            break
    resumed = run_forked(lambda: train(script, run, args.epochs), lambda pid: None) if status else 0
    finished = resumed == 0 or (
        resumed == 2 and (run / "adapter").exists()
    )  # 2: the run was complete when it was killed
    actual = run_digest(run) if finished else {"names": [], "status": resumed}
    different = [name for name in expected if actual.get(name) != expected[name]]
    if status not in (-signal.SIGKILL, 0, 2):
        different.append(f"status {status}")
    outcome = f"DIFFERS in {different}: {(WORK / 'log').read_text()[-600:]}" if different else "equal"
    print(f"{number}: killed at {', '.join(moments)} ({status}), resumed: {outcome}", flush=True)
    if not different:
        for folder in (run, run.with_name(run.name + "-features")):
            shutil.rmtree(folder, ignore_errors=True)
    return not different, kills


def kill_later(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def run_digest(run: Path) -> dict[str, Any]:
    """Return what must be equal: file names, hashes of weights and samples, metrics and losses without times."""
    files = {path.relative_to(run).as_posix(): path for path in sorted(run.rglob("*")) if path.is_file()}
    hashes = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name.startswith("samples/") or name.endswith("adapter_model.safetensors")
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    states = {
        name: json.loads(path.read_text()) for name, path in files.items() if name.endswith("trainer_state.json")
    }
    losses = {name: [without_times(line) for line in state["log_history"]] for name, state in states.items()}
    metrics = [without_times(line) for line in lines]
    return {"names": list(files), "hashes": hashes, "metrics": metrics, "losses": losses}


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.endswith(TIMES)}


if __name__ == "__main__":
    main()
