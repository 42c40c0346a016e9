"""`medcap demo` serves the page of the Space on this machine only.

gradio is not a dependency of the tests; a fake module records its calls.
"""

import asyncio
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medcap.cli import main
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.demo import protection, server
from medcap.demo.functions import make_app
from medcap.demo.occlusion import caption_words, occlusion_change, occlusion_map, word_log_probability
from medcap.demo.protection import HEADERS, MAX_BODY, Protection
from medcap.extras import install_command
from medcap.inference import load_captioner
from medcap.publish.space_app.page import DELETE, KEPT, MAX_FILE, figures

ROOT = Path(__file__).parents[1]


class Gradio(ModuleType):
    """The part of gradio that the page uses; `calls` are keyword arguments by name, `events` callbacks by event."""

    def __init__(self):
        super().__init__("gradio")
        self.calls, self.events = {}, {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def part(*args, **options):
            if args and callable(args[0]):
                self.events.setdefault(name, []).append((args[0], options))
            self.calls[name] = options
            return self

        return part

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, **changes):
        return changes

    @property
    def clicked(self):
        return self.events["click"][-1][0]

    @property
    def changed(self):
        """The callback that shows a new image."""
        return next(function for function, options in self.events["change"] if options.get("cancels"))


@pytest.fixture
def gradio(monkeypatch):
    module = Gradio()
    monkeypatch.setitem(sys.modules, "gradio", module)
    middleware = ModuleType("starlette.middleware")
    middleware.Middleware = lambda cls: cls
    monkeypatch.setitem(sys.modules, "starlette", ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.middleware", middleware)
    monkeypatch.setattr(server, "find_spec", lambda name: module)
    return module


def test_page_is_served_locally_and_deletes_its_cache(gradio, tiny_base, capsys):
    main(["demo", "--model", str(tiny_base), "--port", "7999"])
    launched = gradio.calls["launch"]
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("127.0.0.1", 7999, False)
    assert launched["max_file_size"] == MAX_FILE
    assert launched["app_kwargs"] == {"middleware": [Protection]}
    assert gradio.calls["Blocks"]["analytics_enabled"] is False
    assert gradio.calls["Blocks"]["delete_cache"] == DELETE
    assert [options["api_name"] for _, options in gradio.events["click"] if "api_name" in options] == ["caption"]
    assert capsys.readouterr().err == "http://127.0.0.1:7999 until Ctrl-C\n"


def test_documents_state_how_long_uploads_are_kept():
    oldest = (DELETE[1] + DELETE[0]) // 60
    assert f"{DELETE[1] // 60} to {oldest} minutes" in KEPT
    for name in ("SECURITY.md", "docs/release.md"):
        assert f"{DELETE[1] // 60} to {oldest} minutes" in " ".join((ROOT / name).read_text().split())


def test_taken_port_is_replaced_by_the_next_free_one(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert server.free_port(port) > port
    assert re.fullmatch(rf"port {port} is in use; \d+ is used instead\n", capsys.readouterr().err)


@pytest.fixture
def image_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    return str(tmp_path / "gray.png")


def test_page_generates_the_caption_of_the_captioner(gradio, tiny_base, image_file):
    main(["demo", "--model", str(tiny_base), "--num_beams", "1", "--max_new_tokens", "6"])
    captioner = load_captioner(str(tiny_base), generation={"num_beams": 1, "max_new_tokens": 6})
    size = captioner.image_size
    app = make_app(captioner, {}, show_base=False, evidence=None)
    image, caption, problem = app.answer(image_file, app.beams, app.length)
    assert [caption] == captioner.caption([Image.open(image_file)])
    assert (image.mode, image.size, problem) == ("RGB", (size, size), "")
    longer = load_captioner(str(tiny_base), generation={"num_beams": 2, "max_new_tokens": 9})
    assert [app.answer(image_file, 2, 9)[1]] == longer.caption([Image.open(image_file)])


def test_errors_are_beside_an_empty_caption_and_escaped(gradio, tiny_base, tmp_path):
    main(["demo", "--model", str(tiny_base)])
    (tmp_path / "<b>.png").write_text("no image")
    answers = [function(None, 1, 8) for function, options in gradio.events["click"] if "api_name" in options]
    assert answers == [(None, "", "Choose an image file first.")]
    image, caption, problem, *_ = gradio.changed(str(tmp_path / "<b>.png"))
    assert (image, caption) == (None, "")
    assert problem.startswith("cannot read image &lt;b&gt;.png: ")
    assert "<b>" not in problem


def test_new_image_removes_the_results_of_the_earlier_one(gradio, tiny_base, image_file):
    main(["demo", "--model", str(tiny_base)])
    image, caption, problem, *others = gradio.changed(image_file)
    assert image.size == (load_captioner(str(tiny_base)).image_size,) * 2
    assert (caption, problem) == ("", "")
    assert others
    assert set(others) == {None}
    assert gradio.changed(None) == [None, "", "", *others]


def test_results_that_arrive_late_are_removed_too(gradio, tiny_base):
    main(["demo", "--model", str(tiny_base)])
    (computed,) = (options for _, options in gradio.events["click"] if "api_name" in options)
    for event in ("change", "release"):
        clears = [options for function, options in gradio.events[event] if function.__name__ == "clear"]
        queues = {(options.get("queue"), options.get("concurrency_id")) for options in clears}
        assert queues == {(False, None), (None, computed["concurrency_id"])}
    assert computed["concurrency_limit"] == 1


def test_dicom_is_shown_in_the_chosen_window_and_frame(tiny_base, tmp_path):
    file = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    pixels = file.pixel_array
    file.NumberOfFrames, file.PixelData = 3, np.stack([pixels, pixels + 40, pixels + 80]).tobytes()
    file.save_as(tmp_path / "ct.dcm")
    app, path = make_app(load_captioner(str(tiny_base)), {}, show_base=False, evidence=None), str(tmp_path / "ct.dcm")
    assert (app.frames(path), app.frames(__file__), app.frames("/nowhere")) == (3, 0, 0)
    means = [np.asarray(app.view(path, "center and width below", 40, 400, frame)[0]).mean() for frame in range(3)]
    assert means == sorted(set(means))
    preset, own = app.view(path, "brain", 0, 1, 0)[0], app.view(path, "center and width below", 40, 80, 0)[0]
    assert np.array_equal(preset, own)
    assert not np.array_equal(preset, app.view(path, "as in the file", 40, 80, 0)[0])
    assert "no frame 9" in app.view(path, "as in the file", 0, 1, 9)[1]


def test_base_and_similar_training_images_are_shown_beside_the_caption(trained_run, phantoms, image_file):
    captioner = load_captioner(str(trained_run.folder / "adapter"), generation={"num_beams": 1, "max_new_tokens": 8})
    rows = load_data(str(phantoms), splits=["train"])["train"].select(range(4))
    app = make_app(captioner, {}, show_base=True, evidence=rows)
    _, caption, _, base, similar = app.answer(image_file, 1, 8)
    assert [caption] == captioner.caption([Image.open(image_file)])
    with captioner.model.disable_adapter():
        assert [base] == captioner.caption([Image.open(image_file)])
    assert similar.count("<figure>") == 4
    (nearest, text), *_ = app.similar(load_image(rows[2]["image"]))
    assert text == f"{rows[2]['caption']} (similarity 1.00)"
    assert "&lt;b&gt;" in figures([(nearest, "<b>")])


REFUSED = {
    "base without adapter": (["--show_base"], "--show_base needs an adapter"),
    "similar without data": (["--show_similar", "9"], "name their data set with --data"),
    "no port": (["--port", "70000"], "'70000' is no port; it can be 1 to 65535"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_option_without_effect_is_refused(gradio, tiny_base, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--model", str(tiny_base), *options])
    assert message in capsys.readouterr().err


def test_occlusion_change_is_the_difference_of_log_probabilities(tiny_base, monkeypatch):
    monkeypatch.setattr("medcap.demo.occlusion.GRID", 2)
    captioner, caption = load_captioner(str(tiny_base)), "a mass in the left lung"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    words = caption_words(captioner, caption)
    assert words == caption.split()
    change = occlusion_change(captioner, image, caption, 1)
    pixels[:16, 16:] = [int(value) for value in pixels.reshape(-1, 3).mean(0)]
    covered = word_log_probability(captioner, Image.fromarray(pixels), caption, 1)
    assert change[0, 1] == pytest.approx(word_log_probability(captioner, image, caption, 1) - covered, abs=1e-5)
    assert np.abs(change).max() > 0
    assert occlusion_map(captioner, image, caption, 1).size == image.size


def test_log_probabilities_of_words_are_parts_of_that_of_the_caption(tiny_base):
    captioner, image = load_captioner(str(tiny_base)), Image.new("RGB", (32, 32), "gray")
    captions = ["a mass in the left lung", "a mass in the left lung with a cyst"]
    parts = [[word_log_probability(captioner, image, text, word) for word in range(6)] for text in captions]
    assert parts[0] == pytest.approx(parts[1], abs=1e-4)  # a word does not depend on later ones
    assert all(part < 0 for part in parts[0])


def test_missing_gradio_is_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "runs/mine/adapter"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"medcap: error: gradio is not installed: {install_command('demo')}\n"


async def echo(scope, receive, send):
    """An application that reads the body and returns its length; it sets one of the headers."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"unsafe-url")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def request(headers, chunks=(b"",)):
    """Return status, headers and body of the response to a request."""
    sent, rest = [], list(chunks)

    async def receive():
        return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(Protection(echo)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1"])
def test_request_to_this_machine_is_answered_with_a_policy(host):
    status, headers, body = request({"Host": host}, [b"abc", b"de"])
    assert (status, body) == (200, b"5")
    assert headers.items() >= {name.encode(): value.encode() for name, value in HEADERS.items()}.items()
    assert b"Referrer-Policy" not in headers


HOSTS = ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "127.0.0.1:x", "::1"]


@pytest.mark.parametrize("host", HOSTS)
def test_request_with_another_host_is_refused(host):
    assert request({"Host": host})[0] == 421
    assert request({})[0] == 421


@pytest.mark.parametrize("length", [str(MAX_BODY + 1), "9" * 30, "-1", "x"])
def test_large_request_is_refused_before_it_is_read(length):
    status, _, body = request({"Host": "localhost", "Content-Length": length}, [])
    assert (status, body) == (413, f"a request is limited to {MAX_BODY:,} bytes".encode())


def test_large_request_without_its_length_is_refused(monkeypatch):
    monkeypatch.setattr(protection, "MAX_BODY", 10)
    assert request({"Host": "localhost"}, [b"12345"] * 2)[0] == 200
    with pytest.raises(protection.RequestTooLargeError, match="a request is limited to 10 bytes"):
        request({"Host": "localhost"}, [b"12345"] * 9)


def test_other_scopes_pass():
    asyncio.run(Protection(echo)({"type": "lifespan"}, None, None))
