"""The Gradio page of the Space and of `medcap demo`. Must not import medcap: a Space runs without it."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from PIL import Image

MAX_FILE = 100_000_000  # bytes of an upload
NOTICE = (
    "Research software. Not a medical device: do not use it for diagnosis, treatment, triage or any other decision "
    "about a patient. Captions can state the wrong organ, the wrong side or a finding that is not present. "
    "Do not upload images of patients."
)


def make_page(
    title: str, names: str, read: Callable[[str], Image.Image], caption: Callable[[Image.Image], str]
) -> Any:
    """Return the Gradio Blocks: file upload, button, model input and caption. Uploads are deleted within two hours.

    Args:
        title: Heading of the page.
        names: Description of the model, shown below the notice.
        read: Opens a file as an RGB image; raises an exception for an unreadable file.
        caption: Captions an RGB image.
    """
    import gradio

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML(heading(title, names))
        file = gradio.File(label="Image file", type="filepath")  # gradio.Image gives no message for unreadable files
        button = gradio.Button("Caption", variant="primary")
        image = gradio.Image(label="Model input", interactive=False)
        text = gradio.Textbox(label="Caption", interactive=False)
        button.click(lambda path: answer(path, read, caption), inputs=file, outputs=[image, text])
    return blocks


def heading(title: str, names: str) -> str:
    """Return title, notice and model as HTML, with all names escaped."""
    return f"<h1>{html.escape(title)}</h1><p><b>{html.escape(NOTICE)}</b></p><p>{html.escape(names)}</p>"


def answer(
    path: str | None, read: Callable[[str], Image.Image], caption: Callable[[Image.Image], str]
) -> tuple[Image.Image | None, str]:
    """Return the image in a file and its caption, or None and an error message."""
    if path is None:
        return None, "Choose an image file first."
    try:
        image = read(path)
    except Exception:  # image decoders raise many types of errors
        return None, "This file cannot be read as an image."
    return image, caption(image)
