"""Kill a run with SIGKILL again and again, go on with the same command, and compare with the run that nobody killed.

    python benchmarks/kills.py [--kills 100] [--points 20] [--from N] [--seed S] [--epochs 3]

--kills N: after a random time of a run (uniform over the time that the undisturbed run takes). --points N: at a random
file being opened, renamed or removed in the run's folder, before it happens: so every moment of writing has its turn.
The continuation may be killed in its turn (half of them are), and the last one ends. Compared bit for bit: the
adapter, metrics.jsonl but for times, samples, predictions and losses of each step, and the names of all that is left.

All processes are forked from this one once the libraries are imported, and before it computes anything.
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
TIMES = ("runtime", "per_second", "throughput", "data_wait_share", "_seconds", "seconds_left", "_gb")
AGAIN = 0.5  # of continuations, so many are killed in their turn


def main() -> None:
    """ImageInfo one line for each killed run, and a last one; ends with status 1 when a continuation differs."""
    words = parse()
    script = load_script()
    try:
        forked(prepare)
        clean = WORK / "undisturbed"
        seconds, events = -time.monotonic(), WORK / "events"
        forked(lambda: (count(events, clean), train(script, clean, words.epochs)))
        seconds += time.monotonic()
        points = int(events.read_text())
        expected = portrait(clean)
        print(f"undisturbed: {seconds:.1f} s, {points} events on files, {len(expected['names'])} names", flush=True)
        ends = {number: survives(script, number, words, seconds, points, expected) for number in words.numbers}
        wrong = [number for number, (same, _) in ends.items() if not same]
        kills = sum(count for _, count in ends.values())
        print(f"{len(ends)} runs, {kills} kills, {len(wrong)} ended otherwise{': ' * bool(wrong)}{wrong or ''}")
        sys.exit(bool(wrong))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="runs killed after a random time")
    parser.add_argument("--points", type=int, default=0, help="runs killed at a random event on a file of the run")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first: to go on in turns")
    parser.add_argument("--seed", type=int, default=0, help="which moments, with the number of the run")
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    words = parser.parse_args()
    words.numbers = range(words.first, words.first + words.kills + words.points)
    return words


def load_script() -> Any:
    """Import scripts/train.py and all that it needs; nothing is computed."""
    from speed.ours import train_script  # only now: the caches above are read on import

    script = train_script()
    gc.freeze()  # or each fork would go through all that was imported
    return script


def forked(work: Callable[[], Any], until: Callable[[int], None] | None = None) -> int:
    """Do `work` in a forked process, and let `until(pid)` end it; returns its status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        silent = os.open(WORK / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silent, 1), os.dup2(silent, 2)
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
    if until is not None:
        until(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if until is None and status:
        raise RuntimeError(f"status {status}: {(WORK / 'log').read_text()[-2000:]}")
    return status


def prepare() -> None:
    """Write phantoms, a base that a step takes no time with, and the recipe."""
    from medcap.phantom import TINY_BASE
    from medcap.phantom.dataset import write_phantom

    write_phantom(WORK / "data", train=20, valid=6, test=2, seed=0)
    shutil.copytree(TINY_BASE, WORK / "base")


def recipe(run: Path) -> list[str]:
    """The command: epochs of five steps of four images, with dropout, accumulation and a log of every third step."""
    keys: dict[str, Any] = {
        "data_dir": WORK / "data", "model_name_or_path": WORK / "base", "output_dir": run, "lora_dropout": 0.1,
        "feature_cache": run.with_name(run.name + "-features"), "precision": "fp32",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4,
        "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.01, "logging_steps": 3,
        "num_beams": 1, "max_new_tokens": 12, "use_cpu": True, "save_total_limit": 2,
    }  # fmt: skip
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def train(script: Any, run: Path, epochs: int) -> None:
    script.main([*recipe(run), "--num_train_epochs", str(epochs)])


def count(events: Path, run: Path) -> None:
    """Write into `events`, at each event on a file below `run`, how many there were."""

    def write(seen: int) -> None:
        file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, str(seen).encode())
        os.close(file)

    at_each_event(run, write)


def kill_at(point: int, run: Path) -> None:
    """Let this process be killed before event number `point` on a file below `run`."""
    at_each_event(run, lambda seen: os.kill(os.getpid(), signal.SIGKILL) if seen == point else None)


def at_each_event(run: Path, act: Callable[[int], None]) -> None:
    """Before each event on a file below `run`, call `act` with its number, from 1."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if is_of(event, args, run):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def is_of(event: str, args: tuple[Any, ...], run: Path) -> bool:
    return event in WATCHED and bool(args) and isinstance(args[0], (str, Path)) and str(args[0]).startswith(f"{run}/")


def survives(
    script: Any, number: int, words: argparse.Namespace, seconds: float, points: int, expected: dict[str, Any]
) -> tuple[bool, int]:
    """Kill run `number` once or more, let the last continuation end; whether it is the same, and how many kills."""
    choose, run = random.Random(f"{words.seed}:{number}"), WORK / f"run-{number}"
    by_time, moments, kills = number - words.first < words.kills, [], 0
    while True:
        moment = choose.uniform(0, seconds) if by_time else float(choose.randint(1, points))
        moments.append(f"{moment:.2f} s" if by_time else f"event {moment:.0f}")
        if by_time:
            status = forked(lambda: train(script, run, words.epochs), lambda pid: kill_later(pid, moment))  # noqa: B023
        else:
            status = forked(lambda: (kill_at(int(moment), run), train(script, run, words.epochs)), lambda pid: None)  # noqa: B023
        kills += status == -signal.SIGKILL
        if status >= 0 or choose.random() > AGAIN:
            break
    ended = forked(lambda: train(script, run, words.epochs), lambda pid: None) if status else 0
    finished = ended == 0 or (ended == 2 and (run / "adapter").exists())  # killed when all was done: it says so
    found = portrait(run) if finished else {"names": [], "status": ended}
    wrong = [name for name in expected if found.get(name) != expected[name]]
    if status not in (-signal.SIGKILL, 0, 2):
        wrong.append(f"status {status}")
    said = "" if not wrong else f" DIFFERS in {wrong}: {(WORK / 'log').read_text()[-600:]}"
    print(f"{number}: killed at {', '.join(moments)} ({status}), then {'the same' if not wrong else said}", flush=True)
    if not wrong:
        for folder in (run, run.with_name(run.name + "-features")):
            shutil.rmtree(folder, ignore_errors=True)
    return not wrong, kills


def kill_later(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def portrait(run: Path) -> dict[str, Any]:
    """What must be equal: names of all files, hashes of weights and samples, metrics and losses without times."""
    files = {path.relative_to(run).as_posix(): path for path in sorted(run.rglob("*")) if path.is_file()}
    hashed = {
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
    return {"names": list(files), "hashes": hashed, "metrics": metrics, "losses": losses}


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.endswith(TIMES)}


if __name__ == "__main__":
    main()
