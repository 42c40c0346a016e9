"""METEOR 1.5 (Denkowski & Lavie 2014, W14-3348): the Java program of its authors, run as a process."""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
from pycocoevalcap.meteor import meteor as meteor_package
from tqdm import tqdm

from medcap.metrics.java import java_command, last_message, replace_line_breaks
from medcap.metrics.paraphrases import write_paraphrases

logger = logging.getLogger(__name__)

MAX_WORDS = 1000  # the time grows with the product of the lengths: 5,000 by 5,000 words take minutes
NUMBERS = 23  # in an answer to SCORE
CPU_LIMIT = 300.0  # seconds of processor time for one answer, which do not depend on other load on the machine
TIME_LIMIT = 3600.0  # seconds for one answer of a process that hangs


def meteor_statistics(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[str | None]:
    """Return METEOR's statistics of each image as a line of 23 numbers; None, with a warning, if METEOR fails on it.

    Args:
        hypotheses: n tokenized captions.
        references: n lists of tokenized captions.

    Raises:
        RuntimeError: METEOR fails on every image.
    """
    with tempfile.TemporaryDirectory(prefix="medcap-meteor-") as folder:
        table = _write_table(Path(folder, "paraphrases.gz"), itertools.chain(hypotheses, *references))
        with MeteorProcess(table) as process:
            return process.statistics(hypotheses, references)


def _write_table(path: Path, texts: Iterable[str]) -> Path | None:
    """Write the paraphrases that `texts` can contain; return None, with a warning, if their index fails."""
    try:
        write_paraphrases(map(_field, texts), path)
    except OSError as error:
        logger.warning("METEOR reads all its paraphrases, for some seconds, because their index fails: %s", error)
        return None
    return path


class MeteorProcess:
    """A METEOR process as a context manager. METEOR's own table of paraphrases takes five seconds to parse.

    Commands and arguments are those of pycocoevalcap/meteor/meteor.py. In addition, the scores do not depend on the
    locale, no caption can break the protocol (SCORE lines with fields separated by `|||`), a process that ended is
    restarted, and an image that METEOR cannot score, for lack of time or memory, does not affect the others.
    """

    def __init__(self, table: Path | None = None) -> None:
        """Set the file of paraphrases."""
        self.table = table

    def __enter__(self) -> MeteorProcess:
        self._ended, self._requested = threading.Event(), math.inf  # start of the pending request; inf: none
        self._start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._stop()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[str | None]:
        """Return the answer to SCORE for each image, as `meteor_statistics`."""
        pairs = zip(
            hypotheses,
            tqdm(references, desc="METEOR", unit="caption", delay=2, mininterval=0.5, leave=False),
            strict=True,
        )
        return [self._score_or_warn(image, text, captions) for image, (text, captions) in enumerate(pairs)]

    def _score_or_warn(self, image: int, hypothesis: str, references: Sequence[str]) -> str | None:
        try:
            return self._score_twice(hypothesis, references)
        except RuntimeError as error:
            self._restart()
            try:
                self._score("a", ["a"])
            except RuntimeError:
                raise error from None  # the cause is not this image
            message = "image %d (counted from 0; %d words) is left out of METEOR, and 0 in its scores per image: %s"
            logger.warning(message, image, len(hypothesis.split()), error)
            return None

    def _score_twice(self, hypothesis: str, references: Sequence[str]) -> str:
        try:
            return self._score(hypothesis, references)
        except RuntimeError as error:
            if self._is_late:
                raise
            logger.warning("%s; restarting METEOR", error)
            self._restart()
            return self._score(hypothesis, references)

    def _score(self, hypothesis: str, references: Sequence[str]) -> str:
        self._write(["SCORE", *map(_field, (*references, hypothesis))])
        return self._read()

    def _restart(self) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        self._is_late = False
        jar = Path(meteor_package.__file__).with_name(meteor_package.METEOR_JAR)
        paraphrases = [] if self.table is None else ["-a", str(self.table)]
        command = java_command(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", *paraphrases])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that is not read fills up and blocks Java
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def _stop(self) -> None:
        self._process.kill()
        try:
            self._process.communicate()  # waits and closes both pipes
        except (BrokenPipeError, ValueError):  # unwritten input is lost
            self._process.wait()
        self._errors.close()

    def _watch(self) -> None:
        """Kill a process that exceeds a limit, which ends the pending read."""
        request, cpu_before = math.inf, 0.0
        while not self._ended.wait(min(1.0, TIME_LIMIT / 4, CPU_LIMIT / 4)):
            if self._requested != request:
                request, cpu_before = self._requested, self._cpu_seconds()
            elif request < math.inf and (
                self._cpu_seconds() - cpu_before > CPU_LIMIT or time.monotonic() - request > TIME_LIMIT
            ):
                self._is_late = True
                self._process.kill()

    def _cpu_seconds(self) -> float:
        """Return the processor time that the process has used; 0 if it ended."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def _write(self, fields: list[str]) -> None:
        assert self._process.stdin is not None  # it is a pipe
        self._requested = time.monotonic()
        try:
            self._process.stdin.write(" ||| ".join(fields).encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended early") from None
        finally:
            self._requested = math.inf

    def _read(self) -> str:
        assert self._process.stdout is not None
        self._requested = time.monotonic()
        answer = self._process.stdout.readline().decode().strip()
        self._requested = math.inf
        if len(answer.split()) != NUMBERS:  # "" of an ended process, "Error: ..." for invalid input
            raise self._failure(answer or "ended early")
        return answer

    def _failure(self, what: str) -> RuntimeError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        what = f"no answer in {CPU_LIMIT:g} s of processor time or {TIME_LIMIT:g} s" if self._is_late else what
        return RuntimeError(f"METEOR failed: {what}: {last_message(self._errors.read())}")


def _field(text: str) -> str:
    """Return `text` without what separates lines and fields of the protocol."""
    return replace_line_breaks(text).replace("|||", "").replace("  ", " ")


def truncate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]], int]:
    """Truncate images with a prediction and a reference of more than `MAX_WORDS`; also return how many these are.

    The longest caption of ROCOv2 has 778 words.
    """
    images, cut = [[text, *captions] for text, captions in zip(hypotheses, references, strict=True)], 0
    for texts in images:
        is_long = [len(text.split()) > MAX_WORDS for text in texts]
        if is_long[0] and any(is_long[1:]):
            texts[:] = [" ".join(text.split()[:MAX_WORDS]) for text in texts]
            cut += 1
    return [texts[0] for texts in images], [texts[1:] for texts in images], cut
