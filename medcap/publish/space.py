"""A Space: a folder with a page that captions pictures, which runs as it is with `python app.py`."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig

from medcap.data import detokenize as detokenization
from medcap.data import truecasing
from medcap.data.captions import clean_caption
from medcap.io import write_json
from medcap.publish.card import card_metadata
from medcap.publish.card_data import CardData, last_part
from medcap.publish.release import FROM_ADAPTER, RELEASE_FILES, check_files, write_release

PAGES = Path(__file__).parent / "space_app"
GRADIO = "6.31.0"  # what the page was looked at with
OWN_FILES = ("app.py", "page.py", "detokenize.py", "truecasing.py", "settings.json", "requirements.txt", "README.md")
BASE_FILES = ("config.json", "model.safetensors", *FROM_ADAPTER)
SPACE_FILES = frozenset(
    [*OWN_FILES, *(f"adapter/{name}" for name in RELEASE_FILES), *(f"base/{name}" for name in BASE_FILES)]
)


def write_space(folder: Path, run: Path, evaluation: Path | None, facts: CardData, places: Collection[str]) -> None:
    """Write a Space with the release of the run's adapter in it into `folder`.

    A base that is a folder here comes along; one on the Hub is fetched by the page. For `build_release`;
    FileNotFoundError also for a base without weights.
    """
    (folder / "adapter").mkdir()
    write_release(folder / "adapter", run, evaluation, facts, places)
    if facts.base_is_local:
        _copy_base(Path(PeftConfig.from_pretrained(run / "adapter").base_model_name_or_path or ""), folder / "base")
    for name in ("app.py", "page.py"):
        shutil.copyfile(PAGES / name, folder / name)
    (folder / "truecasing.py").write_text(inspect.getsource(truecasing), encoding="utf-8")
    (folder / "detokenize.py").write_text(_detokenize_source(), encoding="utf-8")
    write_json(folder / "settings.json", _settings(facts))
    (folder / "requirements.txt").write_text(_requirements(), encoding="utf-8")
    (folder / "README.md").write_text(_readme(facts), encoding="utf-8")
    check_files(folder, OWN_FILES, SPACE_FILES, places)


def _detokenize_source() -> str:
    """The source of `medcap.data.detokenize` for use without medcap: with truecasing.py beside it."""
    source = inspect.getsource(detokenization).replace("from medcap.data.truecasing import", "from truecasing import")
    imported, function = "from medcap.data.captions import clean_caption\n", inspect.getsource(clean_caption)
    return source.replace(imported, "").replace("\nHYPHEN =", f"\n\n{function}\n\nHYPHEN =", 1)


def _copy_base(base: Path, to: Path) -> None:
    if not (base / "model.safetensors").is_file():
        raise FileNotFoundError(f"{base} holds no model.safetensors, which a Space takes along: give --base")
    to.mkdir()
    for name in BASE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, to / name)


def _settings(facts: CardData) -> dict[str, Any]:
    return {
        "title": f"Captions by {facts.name}",
        "adapter": "adapter",
        "adapter_name": facts.name,
        "base": "base" if facts.base_is_local else facts.base,
        "base_name": last_part(facts.base),
        "base_revision": None if facts.base_is_local else facts.recipe.get("model_revision"),
        "prompt": facts.recipe.get("prompt", ""),
    }


def _requirements() -> str:
    """The packages of the page, at the versions that made the adapter's captions here; gradio comes with the Space."""
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in ("peft", "torch", "transformers")]
    return "\n".join([f"gradio=={GRADIO}", "numpy", "pillow", *pinned]) + "\n"


def _readme(facts: CardData) -> str:
    """The Space's metadata, and what it is."""
    front = {
        "title": facts.name,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "license": card_metadata(facts).license,
        "short_description": "Radiology captions for research, no medical device",
        **({} if facts.base_is_local else {"models": [facts.base]}),
    }
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        "Captions of radiology images, for research. **Not a medical device.** Do not upload pictures of patients.\n\n"
        "    pip install -r requirements.txt\n    python app.py\n\n"
        "`settings.json` names base and adapter, each a folder here or a name on the Hub. What the adapter is, and\n"
        "what it was trained on, stands in `adapter/README.md`.\n"
    )
