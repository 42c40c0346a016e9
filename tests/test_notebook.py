"""The notebook runs from top to bottom, on phantoms with the tiny base. pytest tests/test_notebook.py"""

import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"


def test_notebook_is_saved_without_output() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell.get("outputs") for cell in cells if cell.get("outputs")] == []


@pytest.mark.slow
def test_notebook_runs_on_phantoms(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDCAP_NOTEBOOK_PHANTOMS", str(tmp_path / "work"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "constant     CIDEr" in text
    assert "prediction:" in text
    assert (tmp_path / "work/release/adapter_model.safetensors").is_file()
    assert not (tmp_path / "work/release/adapter").exists()
