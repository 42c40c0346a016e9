"""Protection of the demo's server: host names, the size of requests, and headers of responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medcap.publish.space_app.page import MAX_FILE

HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = MAX_FILE + 1_000_000  # bytes of a request: a file and its form fields
HEADERS = {
    # Gradio starts from an inline script and compiles its templates; all its files are on this server
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestTooLargeError(ValueError):
    """The body of a request exceeds MAX_BODY."""


class Protection:
    """ASGI middleware: refuse other host names and large requests, and add HEADERS to each response.

    A page of another site whose name is made to resolve to this machine (DNS rebinding) sends its own name as host.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification, "HTTP & WebSocket protocol"."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if _host(headers.get(b"host", "")) not in HOSTS:
            await _refuse(send, 421, f"the host must be one of {', '.join(HOSTS)}")
        elif not (length := headers.get(b"content-length", "0")).isdecimal() or int(length) > MAX_BODY:
            await _refuse(send, 413, f"a request is limited to {MAX_BODY:,} bytes")
        else:
            await self.app(scope, _limited(receive), _with_headers(send))


def _host(header: str) -> str:
    """Return a Host header without the port, in lower case."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def _limited(receive: Receive) -> Receive:
    """Return `receive` that raises RequestTooLargeError for a longer body, whatever its Content-Length says."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise RequestTooLargeError(f"a request is limited to {MAX_BODY:,} bytes")
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            others = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
            message = {**message, "headers": [*others, *own]}
        await send(message)

    return add


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
