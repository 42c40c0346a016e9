"""`medcap facts` writes the facts of each caption; `medcap score --clinical` scores without a model of its own."""

import json
import sys

import pytest

from medcap.cli import main

KEYS = ["id", "modality", "laterality", "region", "finding", "negation", "number"]


def run(argv, capsys):
    try:
        main(argv)
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr()
    return 0, capsys.readouterr()


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text('ID,Caption\nb,"CT: no mass, 2 cm cyst in the left kidney"\na,Wilson disease\n', encoding="utf-8")
    return path


def facts_of(captions, capsys):
    out = captions.with_name("facts.jsonl")
    assert run(["facts", str(captions), "--out", str(out)], capsys)[0] == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_facts_are_one_json_line_per_caption_in_order(capsys, captions):
    first, second = facts_of(captions, capsys)
    assert list(first) == list(second) == KEYS
    assert first == {
        "id": "b", "modality": ["CT"], "laterality": ["left"], "region": ["abdomen"], "finding": ["cyst"],
        "negation": ["mass"], "number": ["20 mm"],
    }  # fmt: skip
    assert second == {"id": "a"} | {key: [] for key in KEYS[1:]}


def test_names_of_the_data_sets_concepts_are_terms(capsys, captions):
    names = 'CUI,Canonical name\nC1,Wilson Disease\nC2,"Kidney, left"\n'
    captions.with_name("cui_mapping.csv").write_text(names, encoding="utf-8")
    first, second = facts_of(captions, capsys)
    assert second["finding"] == ["wilson disease"]
    assert first["region"] == ["abdomen"]


def test_a_file_without_captions_is_one_line(capsys, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("ID,Text\na,b\n")
    status, output = run(["facts", str(path), "--out", str(tmp_path / "facts.jsonl")], capsys)
    assert (status, "needs the columns ID, Caption" in output.err) == (1, True)
    assert not (tmp_path / "facts.jsonl").exists()


def test_score_clinical_keeps_the_other_scores_if_radeval_is_missing(capsys, captions, monkeypatch):
    monkeypatch.setitem(sys.modules, "radeval", None)
    out = captions.with_name("scores.json")
    argv = ["score", "--predictions", str(captions), "--references", str(captions), "--out", str(out), "--clinical"]
    status, output = run(argv, capsys)
    assert status == 1
    assert "need radeval" in output.err
    assert json.loads(out.read_text())["n"] == 2
