"""`medcap demo` serves the page of the Space on this machine only.

gradio is not a dependency of the tests; a fake module records its calls.
"""

import contextlib
import sys
from types import ModuleType

import pytest
from PIL import Image

from medcap import demo
from medcap.cli import main
from medcap.extras import install_command
from medcap.inference import load_captioner


class Gradio(ModuleType):
    """The part of gradio that the page uses; `calls` are keyword arguments by name, `clicked` is the callback."""

    def __init__(self):
        super().__init__("gradio")
        self.calls, self.clicked = {}, None

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def part(*args, **options):
            self.calls[name] = options
            return self

        return part

    @contextlib.contextmanager
    def Blocks(self, **options):  # noqa: N802
        self.calls["Blocks"] = options
        yield self

    def click(self, function, **options):
        self.clicked = function


@pytest.fixture
def gradio(monkeypatch):
    module = Gradio()
    monkeypatch.setitem(sys.modules, "gradio", module)
    monkeypatch.setattr(demo, "find_spec", lambda name: module)
    return module


def test_page_is_served_locally_and_deletes_its_cache(gradio, tiny_base, capsys):
    main(["demo", "--model", str(tiny_base), "--port", "7999"])
    launched = gradio.calls["launch"]
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("127.0.0.1", 7999, False)
    assert gradio.calls["Blocks"]["analytics_enabled"] is False
    assert gradio.calls["Blocks"]["delete_cache"] == (600, 3600)
    assert capsys.readouterr().err == "http://127.0.0.1:7999 until Ctrl-C\n"


def test_page_generates_the_caption_of_the_captioner(gradio, tiny_base, tmp_path):
    main(["demo", "--model", str(tiny_base), "--num_beams", "1", "--max_new_tokens", "6"])
    Image.new("L", (40, 30), 90).save(tmp_path / "gray.png")
    image, caption = gradio.clicked(str(tmp_path / "gray.png"))
    captioner = load_captioner(str(tiny_base), generation={"num_beams": 1, "max_new_tokens": 6})
    assert [caption] == captioner.caption([Image.open(tmp_path / "gray.png")])
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert gradio.clicked(None) == (None, "Choose an image file first.")


def test_missing_gradio_is_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "runs/mine/adapter"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"medcap: error: gradio is not installed: {install_command('demo')}\n"
