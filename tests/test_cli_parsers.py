"""Help, errors of one line, completion, and the commands that describe medcap itself."""

import argparse
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from medcap.cli import main, make_parser
from medcap.recipe import read_recipe
from medcap.recipe.help import recipe_help


def parsers(parser=None):
    """Return all parsers below `parser`, itself included."""
    parser = parser or make_parser()
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(found for action in subparsers for inner in action.choices.values() for found in parsers(inner))]


def failed(argv, capsys):
    """Return status and stderr of a wrong command; nothing is printed on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert out == ""
    return ended.value.code, err


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.prog)
def test_help_ends_with_an_example_that_the_parser_accepts(parser):
    example = parser.format_help().rstrip().splitlines()[-1]
    argv = shlex.split(example.partition(" > ")[0])
    assert f"{' '.join(argv)} ".startswith(f"{parser.prog} ")
    args, rest = make_parser().parse_known_args(argv[1:])
    assert not rest or args.takes_keys
    if getattr(args, "folder", None) != Path("recipes"):  # `recipes copy` writes recipes/
        assert all(Path(word).exists() for word in argv if word.startswith("recipes/"))


@pytest.mark.parametrize("every_key", [False, True])
def test_help_of_train_ends_with_an_example_that_is_a_recipe(every_key):
    example = shlex.split(recipe_help(every_key).splitlines()[-1])
    assert example[:2] == ["medcap", "train"]
    read_recipe(example[2:])


ERRORS = {
    "unknown command": (["evaluates"], "'evaluates' is not allowed, did you mean 'evaluate'?", "medcap"),
    "unknown option": (["score", "--prediction", "p"], "--prediction; did you mean --predictions?", "medcap score"),
    "hyphens": (["evaluate", "--max-eval-sample=3"], "did you mean --max_eval_samples?", "medcap evaluate"),
    "before a command": (["--versions", "score"], "unknown option --versions; did you mean --version?", "medcap"),
    "nothing alike": (["cache", "list", "--zzzz"], "unknown option --zzzz; see", "medcap cache list"),
    "unknown value": (
        ["evaluate", "--split", "valids"], "--split: 'valids' is not allowed, did you mean 'valid'?; it can be train,",
        "medcap evaluate",
    ),
    "no number": (["demo", "--num_beams", "x"], "argument --num_beams: invalid int value: 'x'", "medcap demo"),
    "value with a minus": (
        ["caption", "a.dcm", "--model", "m", "--window", "-600,1500"], "write --window=-600,1500, with =",
        "medcap caption",
    ),
    "too many arguments": (["cache", "list", "x"], "unexpected arguments: x", "medcap"),
    "option of train": (["train", "--num_processes", "two"], "invalid int value: 'two'", "medcap train"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "message", "program"), ERRORS.values(), ids=ERRORS)
def test_wrong_command_is_one_line_with_the_nearest_name_and_the_help(argv, message, program, capsys):
    status, err = failed(argv, capsys)
    assert status == 2
    assert err.startswith("medcap: error: ")
    assert err.endswith(f"; see {program} --help\n")
    assert err.count("\n") == 1
    assert message in err


def test_options_with_hyphens_are_accepted():
    args = make_parser().parse_args(["tune-decoding", "run", "--any-gain"])
    assert args.any_gain


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_recipe_keys(shell, capsys, tmp_path):
    main(["completion", shell])
    script = capsys.readouterr().out
    for word in ("tune-decoding", "--max_eval_samples", "--lora_r"):
        assert word in script
    if shell == "bash":
        (tmp_path / "medcap.sh").write_text(script)
        words = "COMP_WORDS=(medcap eval); COMP_CWORD=1; _shtab_medcap; echo ${COMPREPLY[@]}"
        done = subprocess.run(
            ["bash", "-c", f"source {tmp_path}/medcap.sh; {words}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["evaluate"]
        assert "complete -o default" in script


def test_recipes_are_listed_and_copied(capsys, tmp_path):
    main(["recipes", "list", "--json"])
    names = json.loads(capsys.readouterr().out)
    assert names["phantom/lora"]
    main(["recipes", "copy", "phantom/lora", str(tmp_path)])
    copied = Path(capsys.readouterr().out.strip())
    assert copied == tmp_path / "phantom" / "lora.yaml"
    assert read_recipe(["--config", str(copied)])
    main(["recipes", "copy", "phantom/lora", str(tmp_path)])  # the same content
    capsys.readouterr()
    copied.write_text("learning_rate: 1")
    status, err = failed(["recipes", "copy", "phantom/lora", str(tmp_path)], capsys)
    assert (status, "exists and differs" in err) == (2, True)
    assert copied.read_text() == "learning_rate: 1"
    status, err = failed(["recipes", "copy", "phantom/lara", str(tmp_path)], capsys)
    assert (status, "did you mean 'phantom/lora'?" in err) == (2, True)


def test_env_has_versions_and_caches_but_neither_token_nor_user(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    monkeypatch.setenv("USER", "jane")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "jane" / "cache"))
    (tmp_path / "jane" / "cache" / "medcap").mkdir(parents=True)
    (tmp_path / "jane" / "cache" / "medcap" / "file").write_bytes(bytes(2_000_000))
    main(["env"])
    text = capsys.readouterr().out
    main(["env", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["medcap's cache, with features"] == f"{tmp_path}/(user)/cache/medcap, 2.0 MB"
    assert {"torch", "transformers", "gradio", "python", "device", "cpu", "cuda", "Hub cache"} <= result.keys()
    assert result["torch"] in text
    assert "jane" not in text
    assert "aaaa" not in text
