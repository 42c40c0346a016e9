"""An adapter is evaluated on several data sets, with scores by source; its release names all of them.

pytest tests/evaluation/test_several_sources.py
"""

import json
import shutil

import pytest
import yaml

from medcap.cli import main
from medcap.phantom.dataset import write_phantom
from medcap.publish.merge import check_images
from medcap.publish.release import build_release


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two data sets of phantoms with the same ids; read-only."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("ct", "mri")):
        write_phantom(folder / name, train=4, valid=1, test=3, seed=seed)
    return [str(folder / name) for name in ("ct", "mri")]


@pytest.fixture(scope="module")
def evaluated(trained_run, pair, tmp_path_factory):
    """The folder of an evaluation on both data sets; read-only."""
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    main(
        [
            "evaluate",
            "--model",
            str(trained_run.folder / "adapter"),
            "--data",
            *pair,
            "--nearest",
            "0",
            "--out",
            str(out),
        ]
    )
    return out


def test_all_sources_are_scored_together_and_each_alone(evaluated):
    result = json.loads((evaluated / "metrics.json").read_text())
    assert result["n"] == 6
    assert [(part["value"], part["n"]) for part in result["breakdown"]["source"]] == [("ct", 3), ("mri", 3)]
    assert "modality" in result["findings"]
    assert "By source" in (evaluated / "report.html").read_text()
    ids = [line.split(",")[0] for line in (evaluated / "predictions.csv").read_text().splitlines()[1:]]
    assert [image_id.split(".")[0] for image_id in ids] == ["ct"] * 3 + ["mri"] * 3


def test_an_evaluation_of_other_sources_is_not_replaced(evaluated, trained_run, pair, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", str(trained_run.folder / "adapter"), "--data", pair[0], "--out", str(evaluated)])
    assert "holds another evaluation (data was" in capsys.readouterr().err


def test_a_release_names_all_sources_without_their_paths(trained_run, pair, tmp_path):
    run = shutil.copytree(trained_run.folder, tmp_path / "run")
    for path in (run / "recipe.yaml", run / "adapter" / "recipe.yaml"):
        recipe = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**recipe, "data_dir": pair, "data_weights": [2.0, 1.0]}))
    images, description = check_images(run / "adapter")
    assert (len(images), description) == (6, "test images of ct, mri")
    release = build_release(run, tmp_path / "release")
    card = (release / "README.md").read_text()
    assert "`ct, mri`" in card
    assert pair[0] not in card
    published = yaml.safe_load((release / "recipe.yaml").read_text())
    assert (published["data_dir"], published["data_weights"]) == (["ct", "mri"], [2.0, 1.0])
