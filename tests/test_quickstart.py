"""The functions of quickstart; .ci/run runs the complete demo."""

from pathlib import Path

import pytest

from medcap import quickstart
from medcap.evaluation.split import load_split
from medcap.inference import caption_dataset, load_captioner
from medcap.phantom import dataset
from medcap.quickstart import MARK, RECIPES, _prepare_folder, check_release
from medcap.recipe import read_recipe

ROOT = Path(__file__).parents[1]


SETTINGS = {"medcap": "1", "short": False, "seed": 0}


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="was not made by quickstart"):
            _prepare_folder(tmp_path, SETTINGS, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_earlier_quickstart_is_resumed_if_its_settings_are_the_same(tmp_path: Path) -> None:
    _prepare_folder(tmp_path, SETTINGS, False)
    for name in ("data", "data.part"):
        (tmp_path / name).mkdir()
    _prepare_folder(tmp_path, SETTINGS, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", MARK]
    for other in ({"medcap": "2"}, {"short": True}):
        with pytest.raises(FileExistsError, match="another version of medcap or with other options: .*--overwrite"):
            _prepare_folder(tmp_path, {**SETTINGS, **other}, False)
    _prepare_folder(tmp_path, {**SETTINGS, "short": True}, True)
    assert [path.name for path in tmp_path.iterdir()] == [MARK]
    _prepare_folder(tmp_path, {**SETTINGS, "short": True}, False)


def test_finished_steps_are_not_repeated(tmp_path: Path, monkeypatch) -> None:
    """Stopped by Ctrl-C in the second training: data, base and the first training are there."""
    trained: list[str] = []

    def train(command: list[str], stdout: object) -> int:
        run = Path(command[command.index("--output_dir") + 1])
        trained.append(run.name)
        if len(trained) == 2:
            return 130
        (run / "adapter").mkdir(parents=True)
        return 0

    def write(part: Path, *args: object) -> None:
        written.append(part)
        (part / "file").touch()

    written: list[Path] = []
    monkeypatch.setattr(dataset, "_write_files", write)
    monkeypatch.setattr(quickstart, "run_launched", train)
    monkeypatch.setattr(quickstart, "load_split", lambda *args: (_ for _ in ()).throw(ValueError("evaluation")))
    with pytest.raises(SystemExit, match="130"):
        quickstart.quickstart(tmp_path / "out")
    with pytest.raises(ValueError, match="evaluation"):
        quickstart.quickstart(tmp_path / "out")
    assert trained == ["run-4-epochs", "run-6-epochs", "run-6-epochs"]
    assert len(written) == 1


def test_recipes_differ_only_in_epochs_and_output_folder() -> None:
    four, six = (
        read_recipe(["--config", str(ROOT / "recipes/phantom" / name)]).as_dict() for name in RECIPES.values()
    )
    assert {key for key in six if six[key] != four[key]} == {"num_train_epochs", "output_dir"}


def test_release_generates_the_same_captions_without_medcap(trained_run, tiny_base, phantoms) -> None:
    split = load_split(str(phantoms), "test", max_eval_samples=2)
    adapter = trained_run.folder / "adapter"
    captions, _ = caption_dataset(load_captioner(str(adapter)), split.rows)
    assert check_release(tiny_base, adapter, split, captions) == 2
    with pytest.raises(RuntimeError, match="the evaluation 'another caption'"):
        check_release(tiny_base, adapter, split, [captions[0], "another caption"])
