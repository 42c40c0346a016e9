"""Local demo page for a captioner; needs the extra `demo`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from medcap.data.images import read_image
from medcap.extras import install_command
from medcap.publish.card_data import last_part
from medcap.publish.space_app.page import make_page

if TYPE_CHECKING:
    from medcap.inference import Captioner

ADDRESS = "127.0.0.1"  # not reachable from other machines


def check_extra() -> None:
    """Raise ValueError if gradio is not installed."""
    if find_spec("gradio") is None:
        raise ValueError(f"gradio is not installed: {install_command('demo')}")


def serve(captioner: Captioner, port: int) -> None:
    """Serve the page at http://127.0.0.1:PORT until it is stopped; OSError if the port is in use."""
    base = last_part(captioner.base)
    names = f"{last_part(captioner.adapter)} on {base}" if captioner.adapter else base
    page = make_page(
        f"Captions by {last_part(captioner.adapter or captioner.base)}",
        names,
        read_image,
        lambda image: captioner.caption([image])[0],
    )
    sys.stderr.write(f"http://{ADDRESS}:{port} until Ctrl-C\n")
    page.launch(server_name=ADDRESS, server_port=port, share=False, quiet=True)
