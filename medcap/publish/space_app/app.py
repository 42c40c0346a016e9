"""Caption radiology images in a browser: run `python app.py` and open http://127.0.0.1:7860.

`settings.json` names the base and the adapter, each a folder next to this file or a name on the Hub.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import transformers
from detokenize import detokenize
from page import MAX_FILE, make_page
from peft import PeftModel
from PIL import Image
from raster import decode_rgb, read_bytes
from transformers import AutoProcessor, GenerationConfig, ProcessorMixin
from usage import generate

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))


def main() -> None:
    """Serve the page, on localhost or on the address that Spaces sets."""
    names = f"{SETTINGS['adapter_name']} on {SETTINGS['base_name']}"
    make_page(SETTINGS["title"], names, read, caption).launch(max_file_size=MAX_FILE)


def caption(image: Image.Image) -> str:
    """Return the caption of an RGB image, detokenized if need be ("chest X-ray", not "chest x - ray")."""
    text = generate(image, *load_model())
    return detokenize(text) if SETTINGS["detokenize"] else text.strip()


@lru_cache(maxsize=1)
def load_model() -> tuple[PeftModel, ProcessorMixin, GenerationConfig]:
    """Load base and adapter once."""
    model_class, dtype = getattr(transformers, SETTINGS["model_class"]), SETTINGS["dtype"]
    base = model_class.from_pretrained(resolve(SETTINGS["base"]), revision=SETTINGS["base_revision"], dtype=dtype)
    adapter = resolve(SETTINGS["adapter"])
    model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=dtype == "float32").eval()
    return model, AutoProcessor.from_pretrained(adapter), GenerationConfig.from_pretrained(adapter)


def resolve(name: str) -> str:
    """Return a folder next to this file, or the name on the Hub unchanged."""
    return str(HERE / name) if (HERE / name).is_dir() else name


def read(path: str) -> Image.Image:
    """Open a file as RGB; raises for an unreadable file, and for one that is too large."""
    return decode_rgb(read_bytes(path))


if __name__ == "__main__":
    main()
