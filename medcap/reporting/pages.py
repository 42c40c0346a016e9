"""Self-contained HTML pages from the Jinja templates of this package."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medcap.data.images import load_image

FOLDER = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["thousands"] = "{:,}".format
_TEMPLATES.filters["number"] = lambda value: f"{value:.4g}" if isinstance(value, float) else value


def render(template: str, script: str = "", **values: Any) -> str:
    """Return the HTML of a template; all values are escaped.

    The page's Content-Security-Policy allows its own styles, data URLs of images and the file `script` of this
    package, and no request: text that were not escaped could neither run nor send anything.
    """
    code = (FOLDER / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    source = f"'sha256-{digest}'" if script else "'none'"
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src {source}"
    )
    return _TEMPLATES.get_template(template).render(**values, policy=Markup(policy), script=Markup(code))


def thumbnail(image: Any, kind: str = "jpeg", quality: int = 85) -> str:
    """Return the value of an image column as a data URL of at most 320 x 320 pixels."""
    decoded = load_image(image)
    decoded.thumbnail((320, 320))
    buffer = io.BytesIO()
    decoded.save(buffer, kind, quality=quality)
    return data_url(buffer.getvalue(), kind)


def data_url(data: bytes, kind: str) -> str:
    """Return an image file of the format `kind` (png, jpeg or webp) as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
