"""An evaluation appears as a whole, and replaces only the same evaluation, or with --overwrite.

pytest tests/evaluation/test_folder.py
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from medcap.cli import main, make_parser
from medcap.commands.evaluate import _options
from medcap.evaluation.folder import FILES, METRICS, evaluation_folder
from medcap.locks import lock_folder


def captioner_of(weight=1.0, beams=1):
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, weight)
    torch.nn.init.zeros_(model.bias)
    return SimpleNamespace(model=model, generation_config=GenerationConfig(num_beams=beams, max_new_tokens=9))


def split_of(caption="a mass"):
    return SimpleNamespace(rows=Dataset.from_dict({"image_id": ["a"], "caption": [caption]}))


def evaluate(out, text, options=None, overwrite=False, weight=1.0, caption="a mass", beams=1, names=FILES[1:]):
    """Write an evaluation whose files all contain `text`."""
    with evaluation_folder(out, options or {"model": "base", "data": "d"}, overwrite) as folder:
        staging = folder.start(captioner_of(weight, beams), split_of(caption))
        for name in names:
            if "." in name:
                (staging / name).write_text(text)
            else:
                (staging / name).mkdir()
                (staging / name / "predictions.csv").write_text(text)


def contents(out):
    """Return the different texts of the files of an evaluation."""
    files = [path for name in FILES[1:] for path in (out / name, out / name / "predictions.csv")]
    return {path.read_text() for path in files if path.is_file()}


def test_same_evaluation_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "eval"
    for text in ("first", "second"):
        evaluate(out, text)
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
        assert contents(out) == {text}


OTHERS = {
    "model": {"options": {"model": "adapter", "data": "d"}},
    "an option less": {"options": {"data": "d"}},
    "an option more": {"options": {"model": "base", "data": "d", "num_beams": 1}},
    "weights": {"weight": 2.0},
    "rows": {"caption": "a cyst"},
    "settings of the adapter": {"beams": 2},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_evaluation_is_replaced_only_with_overwrite(tmp_path, other):
    evaluate(tmp_path, "first")
    (tmp_path / "thesis").touch()
    with pytest.raises(FileExistsError, match=r"holds another evaluation \(.* was .* and is .*--overwrite"):
        evaluate(tmp_path, "second", **other)
    assert contents(tmp_path) == {"first"}
    evaluate(tmp_path, "second", **other, overwrite=True, names=(METRICS, "predictions.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, "options.json", "predictions.csv", "thesis"]
    assert contents(tmp_path) == {"second"}


def test_options_of_the_command_are_the_same_again(tmp_path):
    argv = ["evaluate", "--model", str(tmp_path), "--data", "d", "--num_beams", "1", "--overwrite", "--out"]
    for out in ("one", "two"):
        options = _options(make_parser().parse_args([*argv, str(tmp_path / out)]))
        assert {"model", "data", "num_beams", "split", "nearest"} <= options.keys()
        assert not {"out", "output", "overwrite", "run", "debug"} & options.keys()
        for _ in range(2):
            evaluate(tmp_path / "eval", "text", {**options, "pair": ("a", tmp_path)})


def test_files_of_unknown_origin_are_kept(tmp_path):
    (tmp_path / "predictions.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="holds an evaluation with unknown options"):
        evaluate(tmp_path, "new")
    assert (tmp_path / "predictions.csv").read_text() == "mine"


def test_kill_while_files_are_moved_leaves_no_mixed_evaluation(tmp_path, monkeypatch):
    """Before each operation; the same command then completes it."""
    point, names = 0, ("predictions.csv", "scores.csv", "baselines", METRICS)
    while True:
        out, left = tmp_path / str(point), [point]
        evaluate(out, "first")
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree"), (Path, "rmdir")):
                patch.setattr(owner, name, killed_after(left, getattr(owner, name)))
            try:
                evaluate(out, "second", {"model": "adapter"}, overwrite=True)
            except RuntimeError:
                point += 1
            else:
                break
        if (out / METRICS).exists():
            shutil.rmtree(out / "evaluation.part", ignore_errors=True)
            assert contents(out) in ({"first"}, {"second"})
        evaluate(out, "second", {"model": "adapter"}, overwrite=True, names=names)
        assert contents(out) == {"second"}
    assert point > len(FILES)


def killed_after(left, function):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("killed")
        return function(*args, **kwargs)

    return call


def test_captions_that_cannot_be_scored_are_kept_beside_the_earlier_evaluation(tmp_path):
    evaluate(tmp_path, "first")
    with pytest.raises(IsADirectoryError):  # a name with a point is written as a file
        evaluate(tmp_path, "captions", names=("predictions.csv", "."))
    assert (tmp_path / "evaluation.part" / "predictions.csv").read_text() == "captions"
    assert contents(tmp_path) == {"first"}


def failing_command(argv, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(argv)
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_refusal_comes_before_the_model_is_loaded(tmp_path, capsys):
    evaluate(tmp_path / "eval", "first", {"model": "other"})
    argv = ["evaluate", "--model", "/no/model", "--data", "/no/data", "--out", str(tmp_path / "eval")]
    assert "eval holds another evaluation (" in failing_command(argv, capsys)
    assert "no model at '/no/model'" in failing_command([*argv, "--overwrite"], capsys)
    with lock_folder(tmp_path / "eval"):
        assert "eval is in use by process" in failing_command([*argv, "--overwrite"], capsys)
    assert contents(tmp_path / "eval") == {"first"}
    assert json.loads((tmp_path / "eval" / "options.json").read_text())["model"] == "other"
