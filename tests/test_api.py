"""The public API of `import medcap`."""

import subprocess
import sys

import pytest

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


def test_example_of_the_docstring_runs(trained_run, phantoms, capsys) -> None:
    example = medcap.__doc__.split("An example for a notebook:")[1].split("`medcap train`")[0]
    lines = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    values = {"data/rocov2": str(phantoms), "run/adapter": str(trained_run.folder / "adapter"), "range(8)": "range(2)"}
    for example_value, value in values.items():
        assert example_value in lines
        lines = lines.replace(example_value, value)
    exec(lines, {})
    assert float(capsys.readouterr().out.split()[-1]) >= 0
