"""Caption radiology images in a browser: run `python app.py` and open http://127.0.0.1:7860.

`settings.json` names the base and the adapter, each a folder next to this file or a name on the Hub.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import transformers
from detokenize import detokenize
from page import LAUNCH, App, make_page, resized, with_beams
from peft import PeftModel
from PIL import Image
from raster import decode_rgb, read_bytes
from transformers import AutoProcessor, GenerationConfig, ProcessorMixin
from usage import generate

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))


def main() -> None:
    """Serve the page, on localhost or on the address that Spaces sets."""
    make_page(make_app()).launch(**LAUNCH)


def make_app() -> App:
    """Return what the page shows and calls; the model is loaded for the first caption."""
    settings = GenerationConfig.from_pretrained(resolve(SETTINGS["adapter"]))
    examples = {path.stem: str(path) for path in sorted((HERE / "examples").glob("*.png"))}
    names = f"Model: {SETTINGS['adapter_name']} on {SETTINGS['base_name']}."
    return App(names, read, resize, caption, settings.num_beams, settings.max_new_tokens, examples)


def caption(image: Image.Image, beams: int, length: int) -> str:
    """Return the caption of an RGB image, detokenized if need be ("chest X-ray", not "chest x - ray")."""
    model, processor, settings = load_model()
    text = generate(image, model, processor, with_beams(settings, beams, length))
    return detokenize(text) if SETTINGS["detokenize"] else text.strip()


def resize(image: Image.Image) -> Image.Image:
    """Return an image as the model receives it."""
    return resized(image, load_model()[1].image_processor)


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
