"""Caption radiology images in a browser: run `python app.py` and open http://127.0.0.1:7860.

`settings.json` names the base and the adapter, each a folder next to this file or a name on the Hub.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from detokenize import detokenize
from page import MAX_FILE, make_page
from peft import PeftModel
from PIL import Image
from raster import decode_rgb, read_bytes
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))


def main() -> None:
    """Serve the page, on localhost or on the address that Spaces sets."""
    names = f"{SETTINGS['adapter_name']} on {SETTINGS['base_name']}"
    make_page(SETTINGS["title"], names, read, caption).launch(max_file_size=MAX_FILE)


def caption(image: Image.Image) -> str:
    """Return the detokenized caption of an RGB image ("chest X-ray", not "chest x - ray"), behind the prompt."""
    model, processor, generation_config = load_model()
    inputs = processor(images=image, text=SETTINGS["prompt"] or None, return_tensors="pt")
    with torch.inference_mode():
        # the image size of the adapter may differ from that of the base: interpolate_pos_encoding
        ids = model.generate(**inputs, generation_config=generation_config, interpolate_pos_encoding=True)
    return detokenize(processor.decode(ids[0], skip_special_tokens=True))


@lru_cache(maxsize=1)
def load_model() -> tuple[PeftModel, BlipProcessor, GenerationConfig]:
    """Load base and adapter once."""
    base = BlipForConditionalGeneration.from_pretrained(resolve(SETTINGS["base"]), revision=SETTINGS["base_revision"])
    adapter = resolve(SETTINGS["adapter"])
    model = PeftModel.from_pretrained(base, adapter).eval()
    return model, BlipProcessor.from_pretrained(adapter), GenerationConfig.from_pretrained(adapter)


def resolve(name: str) -> str:
    """Return a folder next to this file, or the name on the Hub unchanged."""
    return str(HERE / name) if (HERE / name).is_dir() else name


def read(path: str) -> Image.Image:
    """Open a file as RGB; raises for an unreadable file, and for one that is too large."""
    return decode_rgb(read_bytes(path))


if __name__ == "__main__":
    main()
