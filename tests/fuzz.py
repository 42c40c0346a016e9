"""Hostile input to every door of medcap: recipes, tables, images, captions, checkpoints and adapters.

    python tests/fuzz.py                          2,000 inputs, 400 of each kind; ends with 1 if one of them is a fault
    python tests/fuzz.py --kind images --count 50 --seed 7
    python tests/fuzz.py --kind images --only 31  one of them again, with what it said

Each input is made from its kind, number and seed alone, and goes through the command line in this process. It must end
with status 0, 1 or 2, say at most one `medcap: error:`, show no traceback, end in time, write nothing outside its own
folder, and leave nothing in the folder for temporary files. What is none of the user's business (`KeyError: 'x' (run
again with --debug for the traceback)`) is a fault too: an error names what is wrong.
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

LIMIT = 120  # seconds for one input, many times what the slowest takes
WRITES = {  # audit events that change files (docs.python.org/3/library/audit_events.html): where their paths stand
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.truncate": (0,),
    "os.symlink": (1,), "os.link": (1,), "os.chmod": (0,), "shutil.rmtree": (0,),
}  # fmt: skip


@dataclass
class Case:
    """One input: its folder, and the words of the command that reads it."""

    kind: str
    number: int
    words: list[str]
    command: Callable[[list[str]], None]


@dataclass
class Ending:
    """How a case ended: status, what it said, and what is wrong with that (nothing: "")."""

    status: int | None
    said: str
    fault: str = ""


class TooLongError(BaseException):
    """Not an Exception: nothing on the way may take it for an error of its own."""


class Watch:
    """Remembers which files are opened for writing, made, renamed or removed, outside `allowed` folders."""

    def __init__(self) -> None:
        self.allowed: list[str] = []
        self.outside: list[str] = []
        self.is_on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if isinstance(flags, int) else 0
            paths = [path] if writes else []
        else:
            paths = [args[place] for place in WRITES.get(event, ())]
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                self._note(event, os.fsdecode(path))

    def _note(self, event: str, path: str) -> None:
        real = os.path.realpath(path)
        if not any(real == place or real.startswith(f"{place}/") for place in (*self.allowed, "/dev", "/proc")):
            self.outside.append(f"{event} {path}")

    @contextlib.contextmanager
    def over(self, *allowed: Path) -> Iterator[None]:
        """Watch while this lasts."""
        self.allowed, self.outside, self.is_on = [os.path.realpath(place) for place in allowed], [], True
        try:
            yield
        finally:
            self.is_on = False


WATCH = Watch()


def run(case: Case, folder: Path, shared: Path) -> Ending:
    """Run one case in `folder`, where it may write; `shared` holds caches and the folder for temporary files."""
    temporary, out = shared / "tmp", io.StringIO()
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), WATCH.over(folder, shared), limit():
            status = _status(case)
    except TooLongError:
        return Ending(None, out.getvalue(), f"still running after {LIMIT} s")
    except BaseException:
        return Ending(None, out.getvalue(), f"raised:\n{traceback.format_exc()}")
    finally:
        os.chdir(before)
        tempfile.tempdir = None
    said = out.getvalue()
    left = sorted(path.name for path in temporary.iterdir())
    return Ending(status, said, _fault(status, said, left))


def _status(case: Case) -> int:
    try:
        case.command(case.words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _fault(status: int, said: str, left: list[str]) -> str:
    errors = [line for line in said.splitlines() if "medcap: error:" in line or "train.py: error:" in line]
    if status not in (0, 1, 2):
        return f"status {status}"
    if "Traceback (most recent call last)" in said:
        return "a traceback"
    if (status == 0) != (not errors) or len(errors) > 1:
        return f"status {status} with {len(errors)} errors"
    if errors and ("--debug for the traceback" in errors[0] or not errors[0].partition("error:")[2].strip()):
        return f"an error that says nothing: {errors[0][:300]}"
    if WATCH.outside:
        return f"wrote outside its folder: {WATCH.outside[0]}"
    return f"left behind: {left[0]}" if left else ""


@contextlib.contextmanager
def limit() -> Iterator[None]:
    """Raise TooLongError in what takes longer than LIMIT; end the process if even that does not stop it."""

    def stop(*_: object) -> None:
        raise TooLongError

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, earlier)


def fuzz(
    kind: str, numbers: range, seed: int, root: Path, shared: Path, seeds: Any, skip: Sequence[str] = ()
) -> Iterator[tuple[Case, Ending]]:
    """Make and run the cases of a kind, each in a new folder below `root`; `shared` as for `run`.

    Those whose command is one of `skip` are passed over.
    """
    from fuzz_inputs import MAKERS

    for number in numbers:
        folder = root / f"{kind}-{number}"
        folder.mkdir(parents=True)
        words, command = MAKERS[kind](random.Random(f"{seed} {kind} {number}"), folder, seeds)
        if words[0] not in skip:
            case = Case(kind, number, words, command)
            yield case, run(case, folder, shared)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Fuzz as the command line says, and print what ended how."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # its Hub and its caches, before any library is imported
    from fuzz_inputs import MAKERS, Seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=MAKERS, action="append", help="(default: all)")
    parser.add_argument("--count", type=int, default=400, help="inputs of each kind (default: 400)")
    parser.add_argument("--start", type=int, default=0, help="the number of the first (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this one alone")
    args = parser.parse_args()
    numbers = range(args.start, args.start + args.count) if args.only is None else range(args.only, args.only + 1)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="medcap-fuzz-") as place:
        root, shared = Path(place).resolve(), Path(conftest._CACHE.name)
        seeds = Seeds.make(root / "seeds")
        for kind in args.kind or MAKERS:
            endings = Counter()
            for case, ending in fuzz(kind, numbers, args.seed, root, shared, seeds):
                endings[ending.status if not ending.fault else "fault"] += 1
                if ending.fault or args.only is not None:
                    faults += bool(ending.fault)
                    text = f"{kind} {case.number}: {ending.fault}\n    {' '.join(case.words)[:400]}\n"
                    print(text.encode("ascii", "backslashreplace").decode(), flush=True)
                if args.only is not None:
                    print(ending.said)
            print(f"{kind}: " + ", ".join(f"{n} ended with {how}" for how, n in endings.items()), flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
