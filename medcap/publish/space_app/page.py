"""A page that captions pictures: what it shows, whoever makes the captions. Needs gradio, and no medcap."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from PIL import Image

NOTICE = (
    "Research software. Not a medical device: not for diagnosis, treatment or triage, nor for any decision about a "
    "patient. Captions can name the wrong organ, the wrong side or a finding that is not there. "
    "Do not upload pictures of patients."
)


def make_page(
    title: str, names: str, read: Callable[[str], Image.Image], caption: Callable[[Image.Image], str]
) -> Any:
    """Return gradio's Blocks: a file, a button, the picture as the model sees it, and its caption.

    `read` opens a file as RGB; `names` says which model it is. What is uploaded is removed within two hours.
    """
    import gradio

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML(heading(title, names))
        file = gradio.File(
            label="Picture", type="filepath"
        )  # gradio's own Image fails on what is none, without a word
        button = gradio.Button("Caption", variant="primary")
        picture = gradio.Image(label="What the model sees", interactive=False)
        text = gradio.Textbox(label="Caption", interactive=False)
        button.click(lambda path: answer(path, read, caption), inputs=file, outputs=[picture, text])
    return blocks


def heading(title: str, names: str) -> str:
    """Title, notice and model as HTML, in which a name is only ever text."""
    return f"<h1>{html.escape(title)}</h1><p><b>{html.escape(NOTICE)}</b></p><p>{html.escape(names)}</p>"


def answer(
    path: str | None, read: Callable[[str], Image.Image], caption: Callable[[Image.Image], str]
) -> tuple[Image.Image | None, str]:
    """The picture in a file and its caption, or None and what is wrong with the file."""
    if path is None:
        return None, "Choose a picture first."
    try:
        picture = read(path)
    except Exception:  # decoders raise errors of all kinds
        return None, "This file is no picture that can be read."
    return picture, caption(picture)
