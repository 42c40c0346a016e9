"""training.html and curves.png of a run: their content, escaping, and what resumed and unfinished runs have.

pytest tests/reporting/test_training_page.py
"""

import json
import re
from types import SimpleNamespace

import yaml
from datasets import Dataset
from PIL import Image

from medcap.data.selection import FEATURES
from medcap.reporting import training_page
from medcap.reporting.plots import plot_training
from medcap.reporting.training_page import TrainingPage, write_training_page
from medcap.training.callbacks import Samples, read_samples

HOSTILE = "<script>alert(1)</script> *a* &amp; \"'|"


def run_of(folder, counts):
    """Write the files of a run that the page reads, with `counts` of dropped rows."""
    folder.mkdir()
    lines = [
        {"epoch": epoch, "step": 2 * epoch, "loss": 1.5, "eval_loss": 1.25, "eval_cider": 0.75, "eval_runtime": 2.0,
         "throughput": {"images_per_second": 12.5, "data_wait_fraction": 0.25, "training_seconds": 90.0,
                        "memory_gb": 1.5, "seconds_left": 0.0}}
        for epoch in (1, 2)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": {"read": 9, "rows": 7, **counts}, "valid": {"read": 3, "rows": 3}}
    (folder / "environment.json").write_text(json.dumps({"device": HOSTILE, "data": data}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"num_train_epochs": 2.0, "model_name_or_path": "base"}))
    return folder, lines


def images_of(*ids):
    columns: dict[str, list] = {name: [None] * len(ids) for name in FEATURES}
    columns |= {"image_id": list(ids), "caption": [HOSTILE] * len(ids), "image": [Image.new("RGB", (9, 9))] * len(ids)}
    return Dataset.from_dict(columns, features=FEATURES)


def cells(page):
    return [re.sub(r"<.*?>|\s+", " ", cell).strip() for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", page, re.S)]


def test_page_shows_losses_throughput_memory_and_dropped_rows(tmp_path):
    run, lines = run_of(tmp_path / "run", {"duplicate": 2, "blank": 0})
    write_training_page(run, lines, {}, best=4)
    page = (run / "training.html").read_text()
    shown = cells(page)
    assert {"1.500", "1.250", "0.750", "12.5", "25 %", "1.50", "epoch 2, best", "epoch 1"} <= set(shown)
    assert shown[shown.index("near-duplicates") + 2 :][:4] == ["train", "9", "2", "7"]
    assert "blank captions" not in page
    assert "<script" not in page
    assert "script-src 'none'" in page
    assert (run / "curves.png").is_file()


def test_curves_have_both_losses_and_the_metrics():
    log = [{"epoch": 0.5, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 1.0, "eval_cider": 0.5, "eval_bleu_4": 0.25}]
    loss, metrics, cider = plot_training(log).axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert [line.get_label() for line in metrics.lines] == ["BLEU-4"]
    assert list(cider.lines[0].get_ydata()) == [0.5]
    assert plot_training([{"epoch": 1.0}]) is None


def test_samples_are_read_as_they_were_written(tmp_path):
    rows = images_of("a", "b")
    predictions = [f"{HOSTILE} first", "x"]
    callback = Samples(tmp_path, rows, SimpleNamespace(predictions=predictions), lambda *_: None)
    for epoch in (2.0, 10.0):
        callback.on_evaluate(None, SimpleNamespace(is_world_process_zero=True, epoch=epoch), None)
    expected = [("a", HOSTILE, predictions[0]), ("b", HOSTILE, "x")]
    assert read_samples(tmp_path) == {2: expected, 10: expected}
    assert list(read_samples(tmp_path)) == [2, 10]


def test_every_run_has_the_page_and_the_curves(trained_run):
    page = (trained_run.folder / "training.html").read_text(encoding="utf-8")
    assert (trained_run.folder / "curves.png").is_file()
    assert page.count("<b>epoch 2</b>") == page.count('<img alt="image ') == 6
    assert "epoch 1, best" in cells(page)
    assert not re.search("https?:", page)


def test_page_of_a_long_run_is_written_during_training(tmp_path, monkeypatch):
    run, lines = run_of(tmp_path / "run", {})
    state = SimpleNamespace(is_world_process_zero=True, log_history=lines, best_metric=None, best_global_step=None)
    page = TrainingPage(run, images_of("a"))
    page.on_evaluate(None, state, None)
    assert not (run / "training.html").exists()  # less than SECONDS ago
    monkeypatch.setattr(training_page, "SECONDS", 0.0)
    page.on_evaluate(None, state, None)
    assert (run / "training.html").exists()
