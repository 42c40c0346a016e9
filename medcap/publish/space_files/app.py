"""Captions of radiology images in a browser: `python app.py`, then http://127.0.0.1:7860.

`settings.json` names base and adapter, each a folder beside this file or a name on the Hub.
"""

from __future__ import annotations

import html
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
NOTICE = (
    "Research software. Not a medical device: not for diagnosis, treatment or triage, nor for any decision about a "
    "patient. Captions can name the wrong organ, the wrong side or a finding that is not there. "
    "Do not upload pictures of patients."
)


def main() -> None:
    """Serve the page: on this machine alone, or where Spaces asks for it."""
    page().launch()


def page() -> Any:
    """A picture, a button and its caption. Nothing that is uploaded is kept for longer than an hour."""
    import gradio

    with gradio.Blocks(title=SETTINGS["title"], analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML(heading())
        picture = gradio.Image(label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"])
        button = gradio.Button("Caption", variant="primary")
        text = gradio.Textbox(label="Caption", interactive=False)
        button.click(caption_file, inputs=picture, outputs=text)
    return blocks


def heading() -> str:
    """Title, notice and model as HTML, in which a name is only ever text."""
    names = f"{SETTINGS['adapter_name']} on {SETTINGS['base_name']}"
    return f"<h1>{html.escape(SETTINGS['title'])}</h1><p><b>{html.escape(NOTICE)}</b></p><p>{html.escape(names)}</p>"


def caption_file(path: str | None) -> str:
    """The caption of the picture in a file, or what is wrong with it."""
    if path is None:
        return "Choose a picture first."
    try:
        with Image.open(path) as image:
            return caption(image)
    except (OSError, Image.DecompressionBombError):
        return "This file is no picture that can be read."


def caption(image: Image.Image) -> str:
    """The caption of a picture, as the decoder writes it: in lower case, with "x - ray"."""
    model, processor, settings = load()
    inputs = processor(images=to_rgb(image), text=SETTINGS["prompt"] or None, return_tensors="pt")
    with torch.inference_mode():  # without the flag BLIP would take positions of another grid for another size
        ids = model.generate(**inputs, generation_config=settings, interpolate_pos_encoding=True)
    return str(processor.decode(ids[0], skip_special_tokens=True)).strip()


@lru_cache(maxsize=1)
def load() -> tuple[PeftModel, BlipProcessor, GenerationConfig]:
    """Adapter and base, once."""
    base = BlipForConditionalGeneration.from_pretrained(place(SETTINGS["base"]), revision=SETTINGS["base_revision"])
    adapter = place(SETTINGS["adapter"])
    model = PeftModel.from_pretrained(base, adapter).eval()
    return model, BlipProcessor.from_pretrained(adapter), GenerationConfig.from_pretrained(adapter)


def place(name: str) -> str:
    """A folder beside this file, or a name on the Hub."""
    return str(HERE / name) if (HERE / name).is_dir() else name


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright and on white; more than 8 bits are scaled, where `convert("RGB")` would clip them."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))  # (H, W)
        span = max(values.max() - values.min(), 1e-9)
        image = Image.fromarray(np.round((values - values.min()) * 255 / span).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


if __name__ == "__main__":
    main()
