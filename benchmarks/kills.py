"""Kill runs and evaluations with SIGKILL, start them again with the same command, and compare the results.

    python benchmarks/kills.py [--kills 100] [--points N] [--renames N] [--cache N] [--evaluations N] [--two N]
                               [--from N] [--seed S] [--epochs 3]

--kills N runs are killed after a random time, uniform over the duration of the uninterrupted run. The others are
killed just before a random file operation (open, rename, remove): --points N before any one in the run folder, which
covers every moment of a write, --renames N before a rename, so between two of them, --cache N while the feature cache
is filled, --evaluations N in the folder of `medcap evaluate`. --two N start the same command a second time before the
first is killed, in turns a training and an evaluation: the second one is refused, or resumes after the kill. Half of
the resumed runs are killed again. These must be equal bit for bit: the adapter, metrics.jsonl except for times,
samples, the loss of each step, the names of all files, and all files of an evaluation.

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
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = Path(tempfile.mkdtemp(prefix="medcap-kills-"))
os.environ.update(HF_DATASETS_CACHE=str(WORK / "cache"), XDG_CACHE_HOME=str(WORK / "cache"), HF_HUB_OFFLINE="1")
sys.path.insert(0, str(ROOT))

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
TIMES = ("runtime", "per_second", "throughput", "data_wait_fraction", "_seconds", "seconds_left", "_gb")
KILL_AGAIN = 0.5  # probability that a resumed run is killed again


SERIES = ("kills", "points", "renames", "cache", "evaluations", "two")
Operation = str  # a series that kills before operations: points, renames or cache


@dataclass
class Work:
    """A command in a folder: what is killed, and the result of an uninterrupted run."""

    name: str
    run: Callable[[Path], Any]
    digest: Callable[[Path], dict[str, Any]]
    seconds: float = 0.0
    operations: dict[Operation, int] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def run_uninterrupted(self) -> None:
        folder, events = WORK / self.name, WORK / f"{self.name}.json"
        self.seconds = -time.monotonic()
        run_forked(lambda: (count_operations(events, folder), self.run(folder)))
        self.seconds += time.monotonic()
        self.operations, self.expected = json.loads(events.read_text()), self.digest(folder)
        files = len(self.expected["names"])
        print(
            f"uninterrupted {self.name}: {self.seconds:.1f} s, file operations {self.operations}, {files} files",
            flush=True,
        )


def main() -> None:
    """Print one line per run and a summary; exit with status 1 if a resumed run differs."""
    args = parse()
    script = load_script()
    training = Work("training", lambda folder: train(script, folder, args.epochs), run_digest)
    evaluation = Work("evaluation", evaluate, file_digest)
    try:
        run_forked(prepare)
        series = [name for name in SERIES for _ in range(getattr(args, name))]
        results = {}
        for number, name in enumerate(series, args.first):
            is_evaluation = name == "evaluations" or (name == "two" and number % 2)
            work = evaluation if is_evaluation else training
            if not work.expected:
                work.run_uninterrupted()
            act = start_twice if name == "two" else kill_and_resume
            results[number] = act(work, name, number, random.Random(f"{args.seed}:{number}"))
        different = [number for number, (same, _) in results.items() if not same]
        kills = sum(count for _, count in results.values())
        print(f"{len(results)} runs, {kills} kills, {len(different)} differ{': ' * bool(different)}{different or ''}")
        sys.exit(bool(different))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SERIES:
        parser.add_argument(f"--{name}", type=int, default=100 if name == "kills" else 0, help="number of runs")
    parser.add_argument(
        "--from", dest="first", type=int, default=0, help="number of the first run, to continue an earlier series"
    )
    parser.add_argument("--seed", type=int, default=0, help="selects the moments, together with the number of the run")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    return parser.parse_args()


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


def evaluate(folder: Path) -> None:
    """Evaluate the base on the test split, with baselines."""
    from medcap.cli import main as medcap

    options = {"model": WORK / "base", "data": WORK / "data", "out": folder, "num_beams": 1, "max_new_tokens": 12}
    options["feature_cache"] = folder.with_name(folder.name + "-features")
    medcap(["evaluate", *(argument for key, value in options.items() for argument in (f"--{key}", str(value)))])


def count_operations(events: Path, run: Path) -> None:
    """Write the numbers of file operations so far to `events`, at each operation."""

    def write(operation: Operation, numbers: dict[Operation, int]) -> None:
        file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, json.dumps(numbers).encode())
        os.close(file)

    before_each_operation(run, write)


def kill_at(kind: Operation, point: int, run: Path) -> None:
    """Kill this process before operation number `point` of a kind."""

    def kill(operation: Operation, numbers: dict[Operation, int]) -> None:
        if operation == kind and numbers[kind] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_operation(run, kill)


def before_each_operation(run: Path, act: Callable[[Operation, dict[Operation, int]], None]) -> None:
    """Call `act` with the kind of each operation and the numbers by kind (from 1), before the operation."""
    numbers: dict[Operation, int] = {"points": 0, "renames": 0, "cache": 0}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        for operation in operations_of(event, args, run):
            numbers[operation] += 1
            act(operation, numbers)

    sys.addaudithook(hook)


def operations_of(event: str, args: tuple[Any, ...], run: Path) -> list[Operation]:
    """Return the kinds of an audit event."""
    if event not in WATCHED or not args or not isinstance(args[0], (str, Path)):
        return []
    if str(args[0]).startswith(f"{run}-features/"):
        return ["cache"]
    if str(args[0]).startswith(f"{run}/"):
        return ["points", "renames"] if event == "os.rename" else ["points"]
    return []


def kill_and_resume(work: Work, series: str, number: int, rng: random.Random) -> tuple[bool, int]:
    """Kill a run at least once and resume it; return whether it equals the expected one, and the number of kills."""
    run, moments, kills = WORK / f"run-{number}", [], 0
    kind = "points" if series == "evaluations" else series
    while True:
        if series == "kills":
            moment = rng.uniform(0, work.seconds)
            moments.append(f"{moment:.2f} s")
            status = run_forked(lambda: work.run(run), lambda pid: kill_later(pid, moment))  # noqa: B023
        else:
            point = rng.randint(1, work.operations[kind])
            moments.append(f"{kind} {point}")
            status = run_forked(lambda: (kill_at(kind, point, run), work.run(run)), lambda pid: None)  # noqa: B023
        kills += status == -signal.SIGKILL
        if status >= 0 or rng.random() > KILL_AGAIN:
            break
    faults = [] if status in (-signal.SIGKILL, 0, 2) else [f"status {status}"]
    same = resume_and_compare(work, run, f"{number}: {series} killed at {', '.join(moments)} ({status})", faults)
    return same, kills


def start_twice(work: Work, series: str, number: int, rng: random.Random) -> tuple[bool, int]:
    """Start a run twice, kill the first one, and resume it; return as `kill_and_resume`."""
    run = WORK / f"run-{number}"
    start, moment = sorted(rng.uniform(0, work.seconds) for _ in range(2))
    second: list[int] = []

    def start_second(first: int) -> None:
        killer = threading.Timer(moment, os.kill, (first, signal.SIGKILL))
        killer.start()
        time.sleep(start)
        second.append(run_forked(lambda: work.run(run), lambda pid: None))
        killer.join()

    status = run_forked(lambda: work.run(run), start_second)
    text = f"{number}: two, the second at {start:.2f} s ({second[0]}), the first killed at {moment:.2f} s ({status})"
    # 0: the first one was killed before the second one began to write; 1: refused; 2: a finished run
    faults = [] if second[0] in (0, 1, 2) and status in (-signal.SIGKILL, 0, 1, 2) else ["status"]
    return resume_and_compare(work, run, text, faults), int(status == -signal.SIGKILL)


def resume_and_compare(work: Work, run: Path, text: str, faults: list[str]) -> bool:
    """Resume a run, print `text` and the outcome, and return whether it equals the expected one without `faults`."""
    resumed = run_forked(lambda: work.run(run), lambda pid: None)
    # 2: the run was complete when it was killed
    finished = resumed == 0 or (resumed == 2 and (run / "adapter").exists())
    actual = work.digest(run) if finished else {"names": [], "status": resumed}
    different = faults + [name for name in work.expected if actual.get(name) != work.expected[name]]
    outcome = f"DIFFERS in {different}: {(WORK / 'log').read_text()[-600:]}" if different else "equal"
    print(f"{text}, resumed: {outcome}", flush=True)
    if not different:
        for folder in (run, run.with_name(run.name + "-features")):
            shutil.rmtree(folder, ignore_errors=True)
    return not different


def file_digest(folder: Path) -> dict[str, Any]:
    """Return the names and the hashes of all files of an evaluation."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {"names": list(files), "hashes": hashes}


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
