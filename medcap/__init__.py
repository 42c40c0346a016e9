"""Fine-tune BLIP with LoRA for radiology image captioning, score the captions and publish the model.

The names of the public API are imported on first use. An example for a notebook:

    import medcap

    rows = medcap.load_data("data/rocov2", splits=["test"])["test"].select(range(8))
    captioner = medcap.load_captioner("run/adapter")
    captions = captioner.caption([medcap.load_image(image) for image in rows["image"]])
    scores = medcap.score_captions(captions, [[reference] for reference in rows["caption"]])
    print(captions[0], scores.metrics["cider"])

`medcap train` trains a recipe. `CaptionTrainer` and `CaptionCollator` are its parts for a training loop of your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcap.data.captions import CaptionCollator
    from medcap.data.images import load_image, with_pixel_values
    from medcap.data.load import load_data
    from medcap.inference import Captioner, load_captioner
    from medcap.metrics.coco import score_captions
    from medcap.metrics.coco_caption import CocoCaption
    from medcap.recipe import Recipe, read_recipe
    from medcap.training.trainer import CaptionTrainer

__version__ = "0.1.0"

__all__ = [
    "CaptionCollator",
    "CaptionTrainer",
    "Captioner",
    "CocoCaption",
    "Recipe",
    "load_captioner",
    "load_data",
    "load_image",
    "read_recipe",
    "score_captions",
    "with_pixel_values",
]

_MODULES = {
    "CaptionCollator": "medcap.data.captions",
    "CaptionTrainer": "medcap.training.trainer",
    "Captioner": "medcap.inference",
    "CocoCaption": "medcap.metrics.coco_caption",
    "Recipe": "medcap.recipe",
    "load_captioner": "medcap.inference",
    "load_data": "medcap.data.load",
    "load_image": "medcap.data.images",
    "read_recipe": "medcap.recipe",
    "score_captions": "medcap.metrics.coco",
    "with_pixel_values": "medcap.data.images",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'medcap' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
