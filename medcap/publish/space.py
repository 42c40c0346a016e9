"""A Gradio Space that captions images; it also runs locally with `python app.py`."""

from __future__ import annotations

import inspect
import shutil
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml
from peft import PeftConfig

from medcap.data import detokenize as detokenization
from medcap.data import raster, truecasing
from medcap.data.captions import clean_caption
from medcap.io import write_json
from medcap.phantom.examples import EXAMPLES, write_examples
from medcap.publish.card import card_metadata
from medcap.publish.card_data import CardData, last_part
from medcap.publish.release import FROM_ADAPTER, RELEASE_FILES, check_files, write_release
from medcap.publish.run_reader import ReleaseSource
from medcap.publish.usage import caption_code

APP_FOLDER = Path(__file__).parent / "space_app"
GRADIO = "6.31.0"  # the tested version
OWN_FILES = (
    "app.py", "page.py", "usage.py", "raster.py", "detokenize.py", "truecasing.py",
    "settings.json", "requirements.txt", "README.md",
)  # fmt: skip
BASE_FILES = ("config.json", "model.safetensors", *FROM_ADAPTER)
SPACE_FILES = frozenset(
    [
        *OWN_FILES,
        *(f"examples/{label}.png" for label in EXAMPLES),
        *(f"adapter/{name}" for name in RELEASE_FILES),
        *(f"base/{name}" for name in BASE_FILES),
    ]
)


def write_space(folder: Path, source: ReleaseSource) -> None:
    """Write a Space that contains the release of the run's adapter into `folder`.

    A local base is copied into the Space; a base on the Hub is downloaded by the app. This is a `Writer` for
    `build_release`.

    Raises:
        FileNotFoundError: A local base has no weights.
    """
    card_data = source.card_data
    (folder / "adapter").mkdir()
    write_release(folder / "adapter", source)
    if card_data.base_is_local:
        _copy_base(Path(PeftConfig.from_pretrained(source.adapter).base_model_name_or_path or ""), folder / "base")
    for name in ("app.py", "page.py"):
        shutil.copyfile(APP_FOLDER / name, folder / name)
    for module in (raster, truecasing):
        shutil.copyfile(inspect.getfile(module), folder / f"{module.__name__.rpartition('.')[2]}.py")
    (folder / "detokenize.py").write_text(_detokenize_source(), encoding="utf-8")
    write_json(folder / "settings.json", _settings(card_data))
    (folder / "usage.py").write_text(_usage_source(card_data), encoding="utf-8")
    (folder / "requirements.txt").write_text(_requirements(card_data), encoding="utf-8")
    (folder / "README.md").write_text(_readme(card_data), encoding="utf-8")
    check_files(folder, OWN_FILES, SPACE_FILES, source.local_paths)
    write_examples(folder / "examples")  # afterwards: it reads text, and these depend on nothing


def _detokenize_source() -> str:
    """Return the source of `medcap.data.detokenize` with its medcap imports replaced; needs truecasing.py."""
    source = inspect.getsource(detokenization).replace("from medcap.data.truecasing import", "from truecasing import")
    statement, function = "from medcap.data.captions import clean_caption\n", inspect.getsource(clean_caption)
    return source.replace(statement, "").replace("\nHYPHEN =", f"\n\n{function}\n\nHYPHEN =", 1)


def _usage_source(card_data: CardData) -> str:
    """Return a module with the code of the model card as a function."""
    code = indent(caption_code(card_data), "    ")
    return (
        '"""Generate captions, as in the model card: adapter/README.md."""\n\nimport torch  # noqa: F401\n\n\n'
        "def generate(image, model, processor, generation_config):\n"
        f'    """Return the caption of an RGB image."""\n{code}    return caption\n'
    )


def _copy_base(base: Path, to: Path) -> None:
    if not (base / "model.safetensors").is_file():
        raise FileNotFoundError(f"{base} contains no model.safetensors to copy; name a base on the Hub with --base")
    to.mkdir()
    for name in BASE_FILES:
        if (base / name).is_file():
            (to / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, to / name)


def _settings(card_data: CardData) -> dict[str, Any]:
    return {
        "adapter": "adapter",
        "adapter_name": card_data.name,
        "base": "base" if card_data.base_is_local else card_data.base,
        "base_name": last_part(card_data.base),
        "base_revision": None if card_data.base_is_local else card_data.recipe.get("model_revision"),
        "model_class": card_data.model_class,
        "dtype": card_data.dtype,
        "detokenize": card_data.tokenizer_adds_spaces,
    }


def _requirements(card_data: CardData) -> str:
    """Return the app's requirements, those of medcap pinned to the installed versions."""
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in ("peft", "torch", "transformers")]
    others = ["imagecodecs", "numpy", "pillow", "tifffile", *card_data.family.packages]
    return "\n".join([f"gradio=={GRADIO}", *others, *pinned]) + "\n"


def _readme(card_data: CardData) -> str:
    """Return the README.md of the Space, with its YAML metadata."""
    front = {
        "title": card_data.name,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "license": card_metadata(card_data).license,
        "short_description": "Radiology captions for research, not a medical device",
        **({} if card_data.base_is_local else {"models": [card_data.base]}),
    }
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        "Captions of radiology images, for research. **Not a medical device.** Do not upload images of patients.\n\n"
        "    pip install -r requirements.txt\n    python app.py\n\n"
        "`settings.json` names the base and the adapter, each a folder in this Space or a name on the Hub. The model\n"
        "card is in `adapter/README.md`.\n"
    )
