"""METEOR 1.5 (Denkowski & Lavie 2014, W14-3348): the authors' Java program, kept running and kept in check."""

from __future__ import annotations

import logging
import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.meteor import meteor as meteor_package

from medcap.metrics.java import java_command, last_message, one_line

logger = logging.getLogger(__name__)

LONGEST = 1000  # words: METEOR's time grows with the product of the lengths, and 5,000 by 5,000 take minutes
PATIENCE = 180.0  # seconds for one answer; the first one has to wait until the program has read its tables


class Meteor:
    """One Java process that answers line by line; a context manager, so that the process always ends.

    It starts at once and gets ready by itself, some ten seconds, while its user does something else. Commands and
    arguments are those of pycocoevalcap/meteor/meteor.py. In addition its numbers do not depend on the locale, no
    caption can break the protocol (SCORE lines, fields parted by `|||`), and a process that is gone, as one
    that a full machine has killed, is started again once.
    """

    def __enter__(self) -> Meteor:
        self._ended, self._asked = threading.Event(), math.inf  # when its user began to wait; inf: nobody waits
        self._start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._stop()

    @property
    def is_running(self) -> bool:
        """Whether the Java process is alive."""
        return self._process.poll() is None

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
        """Return the answers to SCORE, one line of 23 numbers per image, from which all scores can be computed.

        RuntimeError when the program fails twice.
        """
        try:
            return self._statistics(hypotheses, references)
        except RuntimeError as error:
            logger.warning("%s. Started again", error)
            self._stop()
            self._start()
            return self._statistics(hypotheses, references)

    def _statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
        lines = []
        for hypothesis, captions in zip(hypotheses, references, strict=True):
            texts = [one_line(text).replace("|||", "").replace("  ", " ") for text in (*captions, hypothesis)]
            self._write(["SCORE", *texts])
            lines.append(self._read())
        return lines

    def _start(self) -> None:
        self._is_late = False
        jar = Path(meteor_package.__file__).with_name(meteor_package.METEOR_JAR)
        command = java_command(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads fills up and stops Java
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def _stop(self) -> None:
        self._process.kill()
        try:
            self._process.communicate()  # waits, and closes both pipes
        except (BrokenPipeError, ValueError):  # what was not yet written has nobody to read it
            self._process.wait()
        self._errors.close()

    def _watch(self) -> None:
        """Kill a process that keeps its user waiting; reading its answer then ends as for any that is gone."""
        while not self._ended.wait(min(1.0, PATIENCE / 4)):
            if time.monotonic() - self._asked > PATIENCE:
                self._is_late = True
                self._process.kill()

    def _write(self, fields: list[str]) -> None:
        assert self._process.stdin is not None  # for mypy: it is a pipe
        self._asked = time.monotonic()
        try:
            self._process.stdin.write(" ||| ".join(fields).encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended early") from None
        finally:
            self._asked = math.inf

    def _read(self) -> str:
        assert self._process.stdout is not None
        self._asked = time.monotonic()
        answer = self._process.stdout.readline().decode().strip()
        self._asked = math.inf
        if not answer[:1].isdigit():  # "" at the end of its life, "Error: ..." for a line it cannot read
            raise self._failure(answer or "ended early")
        return answer

    def _failure(self, what: str) -> RuntimeError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        what = f"no answer in {PATIENCE:g} s" if self._is_late else what
        return RuntimeError(f"METEOR failed: {what}: {last_message(self._errors.read())}")


def bounded(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]], int]:
    """Return both cut to 1,000 words where a prediction and a reference are longer, and of how many images that is.

    No caption of ROCOv2 is (778 words at most): a long prediction beside a usual reference stays whole.
    """
    cut = [
        len(text.split()) > LONGEST and any(len(caption.split()) > LONGEST for caption in captions)
        for text, captions in zip(hypotheses, references, strict=True)
    ]
    heads = [_head(text) if long else text for text, long in zip(hypotheses, cut, strict=True)]
    listed = [[_head(text) if long else text for text in texts] for texts, long in zip(references, cut, strict=True)]
    return heads, listed, sum(cut)


def _head(text: str) -> str:
    return " ".join(text.split()[:LONGEST])
