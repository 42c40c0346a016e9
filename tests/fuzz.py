"""Fuzz the command line with malformed recipes, tables, images, captions, checkpoints, DICOM headers and caches.

    python tests/fuzz.py                          400 inputs of each kind; exits with 1 if a command misbehaved
    python tests/fuzz.py --kind images --count 50 --seed 7
    python tests/fuzz.py --kind images --only 31  repeat one input and print its output

Each input is determined by its kind, number and seed, and its command runs in this process. A command must exit with
status 0, 1 or 2, print at most one `medcap: error:` and no traceback, end in time, write only into its own folder, and
leave no temporary files. An error must name its cause: `KeyError: 'x' (run again with --debug for the traceback)` is
a fault too. For some kinds the right result is known: see fuzz_oracles.py.
"""

import argparse
import contextlib
import faulthandler
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIME_LIMIT = 120  # seconds per command, many times what the slowest takes
# audit events that change files, and the positions of their paths (docs.python.org/3/library/audit_events.html)
WRITE_EVENTS = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.truncate": (0,),
    "os.symlink": (1,), "os.link": (1,), "os.chmod": (0,), "shutil.rmtree": (0,),
}  # fmt: skip


@dataclass
class Case:
    """An input: `command(argv)` reads it."""

    kind: str
    number: int
    argv: list[str]
    command: Callable[[list[str]], None]


@dataclass
class Outcome:
    """Exit status and output of a case, and what was wrong with them ("": nothing)."""

    status: int | None
    output: str
    fault: str = ""


class CommandTimeoutError(BaseException):
    """A command exceeded its time limit; not an Exception, so that the command does not catch it."""


class WriteMonitor:
    """Records which files outside the `allowed` folders are written, created, renamed or removed."""

    def __init__(self) -> None:
        self.allowed: list[str] = []
        self.outside: list[str] = []
        self.is_active = False
        sys.addaudithook(self._audit)  # cannot be removed again

    def _audit(self, event: str, args: tuple) -> None:
        if not self.is_active:
            return
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if isinstance(flags, int) else 0
            paths = [path] if writes else []
        else:
            paths = [args[position] for position in WRITE_EVENTS.get(event, ())]
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                self._record(event, os.fsdecode(path))

    def _record(self, event: str, path: str) -> None:
        real = os.path.realpath(path)
        if not any(real == folder or real.startswith(f"{folder}/") for folder in (*self.allowed, "/dev", "/proc")):
            self.outside.append(f"{event} {path}")

    @contextlib.contextmanager
    def active(self, *allowed: Path) -> Iterator[None]:
        """Monitor writes during a `with` block."""
        self.allowed, self.outside = [os.path.realpath(folder) for folder in allowed], []
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False


MONITOR = WriteMonitor()


def run(case: Case, folder: Path, shared: Path) -> Outcome:
    """Run one case in `folder`, where it may write; `shared` holds caches and temporary files."""
    temporary, out = shared / "tmp", io.StringIO()
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    before = os.getcwd()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), MONITOR.active(folder, shared),
            time_limit(),
        ):  # fmt: skip
            status = _exit_status(case)
    except CommandTimeoutError:
        return Outcome(None, out.getvalue(), f"still running after {TIME_LIMIT} s")
    except BaseException:
        return Outcome(None, out.getvalue(), f"raised:\n{traceback.format_exc()}")
    finally:
        os.chdir(before)
        tempfile.tempdir = None
    remaining = sorted(path.name for path in temporary.iterdir())
    return Outcome(status, out.getvalue(), _fault(status, out.getvalue(), remaining))


def _exit_status(case: Case) -> int:
    try:
        case.command(case.argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0


def _fault(status: int, output: str, remaining: list[str]) -> str:
    errors = [line for line in output.splitlines() if "medcap: error:" in line or "train.py: error:" in line]
    if status not in (0, 1, 2):
        return f"status {status}"
    if "Traceback (most recent call last)" in output:
        return "a traceback"
    if (status == 0) != (not errors) or len(errors) > 1:
        return f"status {status} with {len(errors)} errors"
    if errors and ("--debug for the traceback" in errors[0] or not errors[0].partition("error:")[2].strip()):
        return f"an error without a cause: {errors[0][:300]}"
    if MONITOR.outside:
        return f"wrote outside its folder: {MONITOR.outside[0]}"
    return f"temporary file not removed: {remaining[0]}" if remaining else ""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise CommandTimeoutError after TIME_LIMIT; end the process if that does not stop the command."""

    def stop(*_: object) -> None:
        raise CommandTimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    faulthandler.dump_traceback_later(2 * TIME_LIMIT, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


def fuzz(
    kind: str, numbers: range, seed: int, root: Path, shared: Path, sources: Any, skip: Sequence[str] = ()
) -> Iterator[tuple[Case, Outcome]]:
    """Make and run the cases of a kind, each in a new folder below `root`, except the commands in `skip`."""
    from fuzz_inputs import MAKERS

    for number in numbers:
        folder = root / f"{kind}-{number}"
        folder.mkdir(parents=True)
        argv, command = MAKERS[kind](random.Random(f"{seed} {kind} {number}"), folder, sources)
        if argv[0] not in skip:
            case = Case(kind, number, argv, command)
            yield case, run(case, folder, shared)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Fuzz as the command line asks, and print the faults and the number of outcomes by status."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # sets the Hub's URL and the cache folders before any library is imported
    from fuzz_inputs import MAKERS, Sources

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=MAKERS, action="append", help="(default: all)")
    parser.add_argument("--count", type=int, default=400, help="inputs of each kind (default: 400)")
    parser.add_argument("--start", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the only input")
    args = parser.parse_args()
    numbers = range(args.start, args.start + args.count) if args.only is None else range(args.only, args.only + 1)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="medcap-fuzz-") as folder:
        root, shared = Path(folder).resolve(), Path(conftest.CACHE.name)
        sources = Sources.make(root / "sources")
        for kind in args.kind or MAKERS:
            outcomes = Counter()
            for case, outcome in fuzz(kind, numbers, args.seed, root, shared, sources):
                outcomes["fault" if outcome.fault else outcome.status] += 1
                faults += bool(outcome.fault)
                if outcome.fault or args.only is not None:
                    text = f"{kind} {case.number}: {outcome.fault}\n    {' '.join(case.argv)[:400]}\n"
                    print(text.encode("ascii", "backslashreplace").decode(), flush=True)
                if args.only is not None:
                    print(outcome.output)
            counts = (f"{count} with status {status}" for status, count in outcomes.items())
            print(f"{kind}: {', '.join(counts)}", flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
