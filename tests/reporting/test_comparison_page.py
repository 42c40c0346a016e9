"""The page of a comparison: rows, facts and errors, escaping, and where images and references come from.

Its script is driven in a browser by benchmarks/pages.py.
"""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from medcap.cli import main
from medcap.evaluation.csv_files import write_predictions, write_scores
from medcap.io import write_json
from medcap.metrics.clinical.errors import ERROR_KINDS, errors_of
from medcap.metrics.statistics import METRICS, Statistics
from medcap.reporting.comparison_page import PAGE

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'&"
REFERENCES = {"a": "CT shows a mass in the left lung.", "b": "MRI of the brain without a cyst."}


@pytest.fixture
def data(tmp_path):
    """A data set whose test split has one image more than is evaluated, and another order."""
    folder = tmp_path / "data" / "test"
    folder.mkdir(parents=True)
    rows = {"b": REFERENCES["b"], "other": "CT.", "a": REFERENCES["a"]}
    for name in rows:
        Image.new("RGB", (9, 9)).save(folder / f"{name}.png")
    lines = [
        json.dumps({"file_name": f"{name}.png", "image_id": name, "caption": text}) for name, text in rows.items()
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder.parent


def evaluation(folder, captions, cider, **options):
    """Write an evaluation of the images a and b with two captions and their CIDEr."""
    folder.mkdir()
    write_predictions(folder / "predictions.csv", dict(zip(REFERENCES, captions, strict=True)))
    scores = Statistics(np.ones((2, 10)), np.ones(2), np.array(cider, float), np.ones((2, 6)))
    write_scores(folder / "scores.csv", list(REFERENCES), [None, None], scores)
    content = {"name": folder.name, "n": 2, "metrics": dict.fromkeys(METRICS, 0.5), "split": "test"}
    write_json(folder / "metrics.json", {**content, "intervals": {name: [0, 1] for name in METRICS}})
    write_json(folder / "options.json", options)
    return folder


def compared(tmp_path, *options, captions=(HOSTILE, "a"), **recorded):
    """Compare two systems with `medcap compare`; return the page and its data."""
    base = evaluation(tmp_path / "base", ["CT shows a mass in the right lung.", "MRI."], [0.5, 0.25], **recorded)
    ours = evaluation(tmp_path / "ours", captions, [2.0, 0.125], **recorded)
    main(["compare", str(base), str(ours), "--out", str(tmp_path / "out"), *options])
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    return page, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_rows_hold_reference_facts_captions_scores_and_errors(tmp_path, data):
    page, content = compared(tmp_path, data=str(data))
    assert [system["name"] for system in content["systems"]] == ["base", "ours"]
    first, second = content["rows"]
    side = ERROR_KINDS.index("wrong side")
    missed = ERROR_KINDS.index("missed finding")
    assert first[:5] == ["a", REFERENCES["a"], "CT", ["chest"], ["mass"]]
    assert first[5] == [["CT shows a mass in the right lung.", 0.5, [side]], [HOSTILE, 2.0, [missed]]]
    assert second[:5] == ["b", REFERENCES["b"], "MRI", ["skull"], []]
    assert second[5] == [["MRI.", 0.25, []], ["a", 0.125, []]]
    assert len(re.findall(r'id="image-\d+">data:image/webp;base64,', page)) == 2
    assert PAGE > 2


def test_texts_are_data_of_a_page_without_requests(tmp_path, data):
    page, _ = compared(tmp_path, data=str(data))
    assert page.count("<script") == page.count("</script>") == 4  # data, two images, script
    assert "<img" not in page
    assert not re.search("https?:", page)
    assert re.search(r"script-src 'sha256-[\w+/=]+'\"", page)
    assert "default-src 'none'; img-src data:;" in page


def test_images_are_found_only_with_the_references_that_were_scored(tmp_path, data, caplog):
    page, content = compared(tmp_path)
    assert "The data was not found" in page
    assert content["rows"][0][1:5] == ["", "", [], []]
    assert "name their folder with --data" in caplog.text
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "ours")
    page, content = compared(tmp_path, "--data", str(data), "--data_format", "imagefolder")
    assert content["rows"][0][1] == REFERENCES["a"]


def test_named_data_without_an_image_is_one_line_and_status_1(tmp_path, data, capsys):
    lines = (data / "test" / "metadata.jsonl").read_text().splitlines()
    (data / "test" / "metadata.jsonl").write_text("\n".join(lines[:2]))  # without a
    with pytest.raises(SystemExit, match="1"):
        compared(tmp_path, "--data", str(data))
    assert f"1 images are not in {data}, such as a" in capsys.readouterr().err
    assert not (tmp_path / "out" / "comparison.html").exists()


def test_errors_of_a_caption():
    assert errors_of("CT of a mass in the right lung", "CT of a mass in the left lung") == ["wrong side"]
    assert errors_of("MRI of a cyst", "CT of a mass") == ["wrong modality", "invented finding", "missed finding"]
    assert errors_of("CT of a mass", "CT of a mass") == []
