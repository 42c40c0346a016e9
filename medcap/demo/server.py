"""Local demo page for a captioner; needs the extra `demo`."""

from __future__ import annotations

import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset

from medcap.demo.functions import make_app
from medcap.demo.protection import Protection
from medcap.extras import install_command
from medcap.inference import Captioner
from medcap.phantom.examples import write_examples
from medcap.publish.space_app.page import LAUNCH, make_page

ADDRESS = "127.0.0.1"  # not reachable from other machines
PORTS = 100  # that are tried


def check_extra() -> None:
    """Raise ValueError if gradio is not installed."""
    if find_spec("gradio") is None:
        raise ValueError(f"gradio is not installed: {install_command('demo')}")


def free_port(port: int) -> int:
    """Return `port`, or the next one that is free, which is reported on stderr. Raises OSError if none of 100 is."""
    for candidate in range(port, min(port + PORTS, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, candidate))
            except OSError:
                continue
        if candidate != port:
            sys.stderr.write(f"port {port} is in use; {candidate} is used instead\n")
        return candidate
    raise OSError(f"the ports {port} to {port + PORTS - 1} are in use; give another one with --port")


def serve(captioner: Captioner, port: int, show_base: bool = False, evidence: Dataset | None = None) -> None:
    """Serve the page at http://127.0.0.1:PORT, or the next free port, until it is stopped.

    Args:
        captioner: Captions the images.
        port: From 1 to 65535.
        show_base: Whether the caption without the adapter is shown too.
        evidence: Training images, of which the page shows the most similar ones with their captions.

    Raises:
        RecipeError: `show_base` without an adapter.
        OSError: No port is free.
    """
    from starlette.middleware import Middleware

    with TemporaryDirectory(prefix="medcap-demo-") as folder:
        examples = write_examples(Path(folder) / "examples")
        page = make_page(make_app(captioner, examples, show_base, evidence))
        port = free_port(port)
        sys.stderr.write(f"http://{ADDRESS}:{port} until Ctrl-C\n")
        page.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            quiet=True,
            app_kwargs={"middleware": [Middleware(Protection)]},
            **LAUNCH,
        )
