"""A base whose processor needs a missing package is one line that names the extra.

The tests run in processes of their own, because transformers remembers which packages are installed.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bases
from PIL import Image

from medcap.extras import install_command

SCRIPT = """
import sys

*missing, image, base = sys.argv[1:]
for name in missing:
    sys.modules[name] = None
if "torchvision" not in missing:  # there is one, or its video processors are replaced
    import no_video

    no_video.install()
from medcap.cli import main

main(["caption", image, "--model", base])
"""


def caption_without(packages, name, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *packages, str(tmp_path / "x.png"), str(tiny_bases.base(name))],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "package"), [("smolvlm", "torchvision"), ("qwen2_5_vl", "torchvision"), ("smolvlm", "num2words")]
)
def test_missing_package_is_one_line_and_status_2(name, package, tmp_path):
    done = caption_without([package], name, tmp_path)
    line = (
        f"the processor of {tiny_bases.base(name)} needs {package}, which is not installed: {install_command('vlm')}"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"medcap: error: {line}\n")


def test_image_processors_need_neither_package(tmp_path):
    done = caption_without(["torchvision", "num2words"], "llava", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
