"""A Space runs without medcap, generates the adapter's captions, and escapes all names on its page."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import yaml
from huggingface_hub import SpaceCardData
from PIL import Image

from medcap.data.detokenize import detokenize
from medcap.inference import load_captioner
from medcap.phantom.examples import EXAMPLES
from medcap.publish.release import build_release
from medcap.publish.space import SPACE_FILES, write_space
from medcap.publish.space_app.page import heading


@pytest.fixture(scope="module")
def space(trained_run, tmp_path_factory):
    """A Space of an adapter trained at 48 px on a base for 32 px; read-only."""
    return build_release(trained_run.folder, tmp_path_factory.mktemp("space") / "page", write=write_space)


@pytest.fixture
def app(space, monkeypatch):
    """The Space's code as a module."""
    monkeypatch.syspath_prepend(space)
    yield importlib.import_module("app")
    for name in ("app", "page", "usage", "raster", "detokenize", "truecasing"):
        del sys.modules[name]


def test_space_is_complete_without_local_paths(space, trained_run, tiny_base):
    paths = {path.relative_to(space).as_posix(): path for path in space.rglob("*") if path.is_file()}
    assert paths.keys() <= SPACE_FILES
    assert {"app.py", "requirements.txt", "README.md", "adapter/adapter_model.safetensors", "base/config.json"} <= (
        paths.keys()
    )
    for name, path in paths.items():
        for local_path in (trained_run.folder, tiny_base):
            assert str(local_path).encode() not in path.read_bytes(), name


def test_readme_has_the_metadata_of_a_gradio_space(space):
    card = SpaceCardData(**yaml.safe_load((space / "README.md").read_text().split("---")[1]))
    assert (card.sdk, card.app_file) == ("gradio", "app.py")
    assert f"gradio=={card.sdk_version}" in (space / "requirements.txt").read_text().splitlines()
    assert "Not a medical device" in (space / "README.md").read_text()


def test_requirements_list_all_imports(space):
    required = {line.partition("==")[0] for line in (space / "requirements.txt").read_text().splitlines()}
    imported = {"gradio", "imagecodecs", "numpy", "peft", "pillow", "tifffile", "torch", "transformers"}
    assert required == imported
    compile((space / "app.py").read_text(), "app.py", "exec")


SCRIPT_WITHOUT_MEDCAP = """
import sys
sys.modules["medcap"] = None  # an import would fail
import app
page = app.make_app()
for path in [*sys.argv[1:], None]:
    image, caption, problem = page.answer(path, page.beams, page.length)
    assert image is None or image.size == (48, 48), image.size
    print(caption or problem)
"""


def test_app_generates_the_adapters_captions_without_medcap(space, trained_run, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(rng.integers(30000, 60000, (40, 50), dtype=np.uint16)).save(tmp_path / "16-bit.png")
    (tmp_path / "text.png").write_text("not an image")
    paths = [tmp_path / name for name in ("rgb.png", "16-bit.png", "text.png")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT_WITHOUT_MEDCAP, *map(str, paths)],
        cwd=space,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    captioner = load_captioner(str(trained_run.folder / "adapter"))
    captions = captioner.caption([Image.open(path) for path in paths[:2]])
    assert done.stdout.splitlines() == [
        *captions,
        "This file cannot be read as an image.",
        "Choose an image file first.",
    ]


def test_heading_is_escaped():
    page = heading("<b>x</b> <script> on &")
    assert "<script>" not in page
    assert "&lt;b&gt;x" in page
    assert "Not a medical device" in page


def test_app_detokenizes_captions(app, monkeypatch):
    for text in ("chest x - ray", "a 3. 5 cm mass ( left )", "fdg - pet / ct", "t2 - weighted"):
        assert app.detokenize(text) == detokenize(text) != text
    monkeypatch.setattr(type(app.load_model()[1]), "decode", lambda *args, **options: "x - ray")
    assert app.caption(Image.new("RGB", (8, 8)), 1, 8) == "X-ray"


def test_unreadable_image_is_reported(app, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")  # 196 million pixels in 24 KB
    (tmp_path / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(60 * 2**30)
    for path in [*tmp_path.iterdir(), tmp_path]:
        assert app.make_app().answer(str(path), 1, 8) == (None, "", "This file cannot be read as an image.")


def test_examples_are_the_phantoms_that_medcap_draws(space, app):
    assert app.make_app().examples.keys() == EXAMPLES.keys()
    for label, path in app.make_app().examples.items():
        assert (space / "examples" / f"{label}.png").samefile(path)
        assert Image.open(path).size == (256, 256)


def test_beams_and_length_change_the_generation(app, monkeypatch):
    asked = []
    monkeypatch.setattr(app, "generate", lambda image, model, processor, settings: asked.append(settings) or "x")
    app.caption(Image.new("RGB", (8, 8)), 2, 5)
    assert [(settings.num_beams, settings.max_new_tokens) for settings in asked] == [(2, 5)]
