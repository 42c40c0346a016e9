"""The functions of quickstart; .ci/run runs the complete demo."""

from pathlib import Path

import pytest

from medcap.evaluation.split import load_split
from medcap.inference import caption_dataset, load_captioner
from medcap.quickstart import MARK, RECIPES, _prepare_folder, check_release
from medcap.recipe import read_recipe

ROOT = Path(__file__).parents[1]


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made by quickstart"):
        _prepare_folder(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_folder_of_an_earlier_quickstart_is_replaced(tmp_path: Path) -> None:
    _prepare_folder(tmp_path / "out")
    (tmp_path / "out" / "old.json").write_text("{}")
    _prepare_folder(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]


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
