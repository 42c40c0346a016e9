"""One table of several evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest

from medcap.evaluation.compare import compare
from medcap.evaluation.report import markdown_table, text_table

METRICS = {"bleu_1": 0.5, "bleu_2": 0.4, "bleu_3": 0.3, "bleu_4": 0.2, "meteor": 0.1, "rouge_l": 0.6, "cider": 1.25}


def evaluation(folder: Path, name: str, **changes: Any) -> Path:
    content = {
        "name": name, "n": 3, "metrics": METRICS, "signature": "metrics:coco|n:3|data:abc|decoding:beams-3",
        "baselines": {}, "captions": {}, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_systems_stand_in_order_with_baselines_once(tmp_path: Path) -> None:
    rows = {"constant": {"n": 3, "metrics": METRICS, "caption": "a"}, "shuffled": {"n": 3, "metrics": METRICS}}
    folders = [
        evaluation(tmp_path / "base", "base", baselines=rows),
        evaluation(tmp_path / "tuned", "tuned", baselines=rows),
    ]
    compare(folders, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [system["name"] for system in written["systems"]] == ["base", "tuned", "constant", "shuffled"]
    assert written["systems"][0]["metrics"]["cider"] == 1.25
    assert written["tests"] == []
    assert "| tuned | 0.5000 |" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 4}, "scored 4 images"), ({"signature": "metrics:coco|n:3|data:xyz"}, "different images")],
    ids=["other count", "other data"],
)
def test_other_images_raises(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders = [evaluation(tmp_path / "a", "a"), evaluation(tmp_path / "b", "b", **changes)]
    with pytest.raises(ValueError, match=message):
        compare(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_systems_of_one_name_raises(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "a", "adapter"), evaluation(tmp_path / "b", "adapter")]
    with pytest.raises(ValueError, match="two systems are called 'adapter'"):
        compare(folders, tmp_path / "out")


def test_a_folder_without_metrics_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no metrics.json"):
        compare([tmp_path], tmp_path / "out")


def test_tables_align_and_escape() -> None:
    systems = [{"name": "a|b", "metrics": METRICS, "findings": {"modality": 0.876}}, {"name": "c", "metrics": METRICS}]
    lines = text_table(systems).splitlines()
    assert len({len(line) for line in lines if line.strip()}) == 1
    assert "88%" in lines[2]
    assert "a\\|b" in markdown_table(systems)
