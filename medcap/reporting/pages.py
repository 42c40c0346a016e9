"""Self-contained HTML pages from the Jinja templates of this package."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medcap.data.images import load_image

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["thousands"] = "{:,}".format


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template; all values are escaped."""
    return _TEMPLATES.get_template(template).render(**values)


def thumbnail(image: Any) -> str:
    """Return the value of an image column as a data URL of at most 320 x 320 pixels."""
    decoded = load_image(image)
    decoded.thumbnail((320, 320))
    buffer = io.BytesIO()
    decoded.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
