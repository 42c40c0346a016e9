"""The command that installs the packages of an extra, from where medcap itself was installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """Return the pip command for an extra of `pyproject.toml`.

    `pip install 'medcap[extra]'` would fail, or install another program of this name, for an installation that is not
    from an index: pip records the path, the archive or the repository in `direct_url.json` (PEP 610).
    """
    origin = _origin()
    url = origin.get("url", "")
    path = url2pathname(urlsplit(url).path) if url.startswith("file:") else ""
    if path and Path(path).exists():
        option = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {option}{shlex.quote(f'{path}[{extra}]')}"
    if path:  # it was removed
        return f"pip install {' '.join(map(shlex.quote, _requirements(extra)))}"
    if repository := origin.get("vcs_info"):
        url = f"{repository['vcs']}+{url}@{repository['commit_id']}"
    return f"pip install {shlex.quote(f'medcap[{extra}]' + (f' @ {url}' if url else ''))}"


def _origin() -> dict[str, Any]:
    """Return the content of `direct_url.json`; empty after an installation from an index."""
    try:
        text = metadata.distribution("medcap").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # it runs from its source
        return {"url": Path(__file__).parents[1].as_uri()}
    return json.loads(text) if text else {}


def _requirements(extra: str) -> list[str]:
    required = (requirement.partition(";") for requirement in metadata.requires("medcap") or ())
    return [package.strip() for package, _, marker in required if f"'{extra}'" in marker.replace('"', "'")]
