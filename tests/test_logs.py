"""A token in use is never printed, whatever its shape and whoever prints it (SECURITY.md)."""

import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from huggingface_hub import constants
from tqdm import tqdm
from transformers import GenerationConfig

from medcap import logs
from medcap.cli import main

TOKEN = "s3cret/of+any=shape'\\é"  # a token of another service; quotes and URLs write it differently
SOURCES = {
    "HF_TOKEN": {"HF_TOKEN": TOKEN},
    "old name": {"HUGGING_FACE_HUB_TOKEN": f" {TOKEN}\n"},
    "monitoring": {"WANDB_API_KEY": TOKEN},
    "cloud storage": {"AWS_SECRET_ACCESS_KEY": TOKEN},
    "token file": {},
}
FORMS = {
    "plain": TOKEN,
    "lower case": TOKEN.lower(),
    "literal": repr(TOKEN),
    "bytes": repr(TOKEN.encode("latin-1")).replace("\\xe9", "é"),
    "URL": f"https://hub.example/x?token={quote(TOKEN, safe='')}&page=1",
    "login": f"https://someone:{quote(TOKEN, safe='')}@hub.example/x",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("source", SOURCES)
def test_token_in_use_is_redacted(source, form, monkeypatch, tmp_path):
    for name, value in SOURCES[source].items():
        monkeypatch.setenv(name, value)
    if source == "token file":
        (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    line = logs.error_line(OSError(f"GET {form} failed"))
    assert "(token)" in line
    assert "s3cret" not in line.lower()
    assert line.endswith("failed")


def test_token_of_a_request_is_redacted(monkeypatch):
    monkeypatch.setattr(logs, "_used_tokens", set())
    assert logs.redact("oidc-12345678") == "oidc-12345678"
    logs.add_token("oidc-12345678")
    assert logs.redact("oidc-12345678") == "(token)"


def test_other_text_is_not_changed(monkeypatch):
    """Values of fewer than 8 characters are ordinary words."""
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    for text in ("true", "someone@example.org", "https://example.org/a@b", "zip://left@2x.png::/data/x.zip", ""):
        assert logs.redact(text) == text


def test_login_of_a_url_is_redacted():
    text = "Cannot connect to proxy http://me:pa@ss@10.0.0.1:3128/ and https://key@example.org"
    assert logs.redact(text) == "Cannot connect to proxy http://(token)@10.0.0.1:3128/ and https://(token)@example.org"


PRINT_TOKEN = """
import logging, os, sys, threading, warnings
from medcap.logs import configure_logging, report_errors
configure_logging()
configure_logging()  # again, as in notebooks
token = os.environ["HF_TOKEN"]
print("to stdout", token)
sys.stderr.writelines(["to stderr ", token, chr(10)])
logging.getLogger("medcap").warning("logged %s", token)
warnings.simplefilter("always")
warnings.warn("warned " + token)
thread = threading.Thread(target=lambda: int("in a thread " + token))
thread.start()
thread.join()
with report_errors(debug=True):
    try:
        raise KeyError("cause " + token)
    except KeyError as error:
        raise RuntimeError("error " + token) from error
"""


def test_token_is_redacted_in_all_output(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "own-token-1234")
    done = subprocess.run([sys.executable, "-c", PRINT_TOKEN], capture_output=True, text=True, check=False)
    assert done.stdout == "to stdout (token)\n"
    for message in ("to stderr", "logged", "warned", "in a thread", "cause", "error"):
        assert f"{message} (token)" in done.stderr
    assert "own-token-1234" not in done.stderr
    assert done.stderr.count("Traceback") == 3


def test_traceback_of_debug_has_no_token(monkeypatch):
    monkeypatch.setenv("MEDCAP_ZENODO_URL", "ftp://someone:own-token-1234@zenodo.example")
    command = [sys.executable, "-m", "medcap.cli", "data", "download", "--source", "zenodo", "--out", "x", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "ftp://(token)@zenodo.example" in done.stderr
    assert "own-token" not in done.stderr + done.stdout


PRINT_UNSAFE = """
import logging, sys
from tqdm import tqdm
from transformers import GenerationConfig
from medcap.logs import configure_logging, report_errors
configure_logging()
text = "a\\x1b[2J\\x9b\\u202eb\\rc\\ud800\\x00\\td\\n"
print(text, end="")
logging.getLogger("medcap").warning("file %s", text)
tqdm.write("bar " + text, sys.stderr, end="")
for _ in tqdm(range(2), desc="outer", position=1): pass
with report_errors():
    raise ValueError("error " + text)
"""


def test_control_characters_do_not_reach_the_terminal():
    done = subprocess.run([sys.executable, "-c", PRINT_UNSAFE], capture_output=True, check=False)
    shown = r"a\u001b[2J\u009b\u202eb\u000dc\ud800\u0000" + "\td\n"
    stderr = done.stderr.decode()
    assert done.stdout.decode() == shown
    assert f"file {shown}" in stderr
    assert f"bar {shown}" in stderr
    assert r"medcap: error: error a\u001b[2J\u009b\u202eb c\ud800\u0000 d" in stderr
    assert set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", stderr)) == {"\r", "\x1b"}  # of the progress bar
    assert "\router: 100%" in stderr
    assert "\x1b[A" in stderr
    assert "\x1b[2J" not in stderr


def test_visible_json_is_the_same_text():
    text = "a\x1b\x9b\u202e\x7f\n\u00e4"
    line = logs.visible(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert "\x9b" not in line


@pytest.mark.parametrize("out", [True, False])
def test_any_file_name_is_written_as_json(monkeypatch, capsys, tmp_path, out):
    captioner = SimpleNamespace(generation_config=GenerationConfig(), consensus=None)
    row = {"image": "a\x1b\u202e\udcff.png", "caption": "\u00e4"}  # \udcff: a byte that is no text
    monkeypatch.setattr("medcap.commands.caption.captioner_from_args", lambda args: captioner)
    monkeypatch.setattr("medcap.captioning.caption_files", lambda *args, **kwargs: iter([row]))
    path = tmp_path / "captions.jsonl"
    main(["caption", __file__, "--model", "m", *(["--out", str(path)] if out else [])])
    text = path.read_text(encoding="utf-8") if out else capsys.readouterr().out
    assert json.loads(text) == row
    assert text == '{"image": "a\\u001b\\u202e\\udcff.png", "caption": "\u00e4"}\n'


def test_messages_do_not_continue_the_line_of_a_progress_bar(capsys):
    with tqdm(total=2, desc="captions") as bar:
        bar.update()
        logs._ProgressHandler().emit(logging.makeLogRecord({"msg": "one line"}))
    assert "one line" in capsys.readouterr().err.replace("\r", "\n").splitlines()
