"""The code of a card and a Space that captions an image with transformers and PEFT; one template for each family."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medcap.markdown import cell, code, escape
from medcap.publish.card_data import CardData

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters.update(text=escape, code=code, cell=cell, literal=lambda text: json.dumps(text, ensure_ascii=False))


def caption_code(card_data: CardData) -> str:
    """Return the lines that set `caption` from `image`, `model`, `processor` and `generation_config`."""
    return TEMPLATES.get_template(f"usage/{card_data.family.usage}.jinja").render(card=card_data)
