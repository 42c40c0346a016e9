"""`medcap demo` serves the page of the Space on this machine only.

gradio is not a dependency of the tests; a fake module records its calls.
"""

import asyncio
import contextlib
import sys
from types import ModuleType

import pytest
from PIL import Image

from medcap import demo
from medcap.cli import main
from medcap.demo import HEADERS, MAX_BODY, Protection
from medcap.extras import install_command
from medcap.inference import load_captioner
from medcap.publish.space_app.page import MAX_FILE


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
    middleware = ModuleType("starlette.middleware")
    middleware.Middleware = lambda cls: cls
    monkeypatch.setitem(sys.modules, "starlette", ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.middleware", middleware)
    monkeypatch.setattr(demo, "find_spec", lambda name: module)
    return module


def test_page_is_served_locally_and_deletes_its_cache(gradio, tiny_base, capsys):
    main(["demo", "--model", str(tiny_base), "--port", "7999"])
    launched = gradio.calls["launch"]
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("127.0.0.1", 7999, False)
    assert launched["max_file_size"] == MAX_FILE
    assert launched["app_kwargs"] == {"middleware": [Protection]}
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
    monkeypatch.setattr(demo, "MAX_BODY", 10)
    assert request({"Host": "localhost"}, [b"12345"] * 2)[0] == 200
    with pytest.raises(demo.RequestTooLargeError, match="a request is limited to 10 bytes"):
        request({"Host": "localhost"}, [b"12345"] * 9)


def test_other_scopes_pass():
    asyncio.run(Protection(echo)({"type": "lifespan"}, None, None))
