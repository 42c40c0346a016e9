"""`medcap demo`: the page of the Space for a model on this machine, and for nobody else's browser.

gradio itself is not among the tests' packages: its place is taken by a module that remembers what it was told.
"""

import contextlib
import sys
from types import ModuleType

import pytest
from PIL import Image

from medcap import demo
from medcap.cli import main
from medcap.inference import load_captioner


class Gradio(ModuleType):
    """What of gradio the page uses; `said` holds the words of each call, `clicked` the button's function."""

    def __init__(self):
        super().__init__("gradio")
        self.said, self.clicked = {}, None

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def part(*args, **options):
            self.said[name] = options
            return self

        return part

    @contextlib.contextmanager
    def Blocks(self, **options):  # noqa: N802
        self.said["Blocks"] = options
        yield self

    def click(self, function, **options):
        self.clicked = function


@pytest.fixture
def gradio(monkeypatch):
    module = Gradio()
    monkeypatch.setitem(sys.modules, "gradio", module)
    monkeypatch.setattr(demo, "find_spec", lambda name: module)
    return module


def test_the_page_is_served_to_this_machine_alone_and_keeps_nothing(gradio, tiny_base, capsys):
    main(["demo", "--model", str(tiny_base), "--port", "7999"])
    launched = gradio.said["launch"]
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("127.0.0.1", 7999, False)
    assert gradio.said["Blocks"]["analytics_enabled"] is False
    assert gradio.said["Blocks"]["delete_cache"] == (600, 3600)
    assert capsys.readouterr().err == "http://127.0.0.1:7999 until Ctrl-C\n"


def test_the_page_says_what_medcap_says_of_a_picture(gradio, tiny_base, tmp_path):
    main(["demo", "--model", str(tiny_base), "--num_beams", "1", "--max_new_tokens", "6"])
    Image.new("L", (40, 30), 90).save(tmp_path / "grey.png")
    picture, caption = gradio.clicked(str(tmp_path / "grey.png"))
    captioner = load_captioner(str(tiny_base), generation={"num_beams": 1, "max_new_tokens": 6})
    assert [caption] == captioner.caption([Image.open(tmp_path / "grey.png")])
    assert (picture.mode, picture.size) == ("RGB", (40, 30))
    assert gradio.clicked(None) == (None, "Choose an image file first.")


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "runs/mine/adapter"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "medcap: error: gradio is not installed: pip install 'medcap[demo]'\n"
