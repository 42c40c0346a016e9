"""The public API of `import medcap`."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import medcap


def test_importing_medcap_imports_no_large_library() -> None:
    code = "import sys, medcap; dir(medcap); print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", medcap.__all__)
def test_every_public_name_is_documented(name) -> None:
    assert getattr(medcap, name).__doc__
    assert name in dir(medcap)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'medcap' has no attribute 'nothing'"):
        medcap.nothing  # noqa: B018


def test_examples_of_the_readme_run(phantoms, tiny_base, trained_run, tmp_path, monkeypatch, capsys) -> None:
    """The paths of quickstart are replaced by those of the tests."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Get ROCOv2")[0]
    lines = "\n".join(re.findall(r"```python\n(.+?)```", text, re.DOTALL))
    values = {
        "quickstart/data": phantoms, "quickstart/release": trained_run.folder / "adapter",
        "quickstart/base": tiny_base, "range(300)": "range(2)", "max_steps=20": "max_steps=2",
    }  # fmt: skip
    for example_value, value in values.items():
        assert example_value in lines
        lines = lines.replace(example_value, str(value))
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert (tmp_path / "runs/notebook/adapter/adapter_model.safetensors").is_file()
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_example_of_the_docstring_runs(trained_run, phantoms, capsys) -> None:
    example = medcap.__doc__.split("An example for a notebook:")[1].split("`medcap train`")[0]
    lines = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    values = {"data/rocov2": str(phantoms), "run/adapter": str(trained_run.folder / "adapter"), "range(8)": "range(2)"}
    for example_value, value in values.items():
        assert example_value in lines
        lines = lines.replace(example_value, value)
    exec(lines, {})
    assert float(capsys.readouterr().out.split()[-1]) >= 0
