"""What the demo's page calls: captions, DICOM views, similar training images and occlusion maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from datasets import Dataset
from peft import PeftModel
from PIL import Image

from medcap.data.dicom import DicomImageFile
from medcap.data.dicom_windows import NAMED_WINDOWS, Window
from medcap.data.images import load_image, read_image
from medcap.demo.occlusion import caption_words, occlusion_map
from medcap.inference import Captioner
from medcap.neighbors import image_features
from medcap.publish.card_data import last_part
from medcap.publish.space_app.page import App, resized, with_beams
from medcap.recipe import RecipeError

SIMILAR = 6  # images that are shown


def make_app(captioner: Captioner, examples: Mapping[str, str], show_base: bool, evidence: Dataset | None) -> App:
    """Return the page's functions; arguments as for `serve`. Raises RecipeError for `show_base` without adapter."""
    if show_base and not isinstance(captioner.model, PeftModel):
        raise RecipeError(f"--show_base needs an adapter, and {captioner.base} is a model without one")
    settings, base = captioner.generation_config, last_part(captioner.base)
    return App(
        names=f"Model: {last_part(captioner.adapter)} on {base}." if captioner.adapter else f"Model: {base}.",
        read=read_view,
        resize=partial(_resized, captioner),
        caption=partial(caption, captioner),
        beams=settings.num_beams,
        length=settings.max_new_tokens,
        examples=examples,
        frames=count_frames,
        windows=NAMED_WINDOWS,
        base_caption=partial(caption, captioner, with_adapter=False) if show_base else None,
        similar=None if evidence is None else find_similar(captioner, evidence),
        words=partial(caption_words, captioner),
        occlude=partial(occlusion_map, captioner),
    )


def read_view(path: str, window: tuple[float, float] | None = None, frame: int | None = None) -> Image.Image:
    """Return an image file as RGB; `window` is center and width, for a grayscale DICOM file."""
    return read_image(path, frame, (Window(*window),) if window else ())


def count_frames(path: str) -> int:
    """Return the number of frames of a DICOM file, and 0 for any other or unreadable file."""
    try:
        with open(path, "rb") as file:
            return DicomImageFile(file).n_frames
    except Exception:  # pydicom raises many types of errors; `read_view` reports them
        return 0


def caption(captioner: Captioner, image: Image.Image, beams: int, length: int, with_adapter: bool = True) -> str:
    """Return a caption with a number of beams and a maximum length in tokens."""
    settings = with_beams(captioner.generation_config, beams, length)
    model = captioner.model
    is_bare = isinstance(model, PeftModel) and not with_adapter
    with model.disable_adapter() if is_bare else nullcontext():
        return replace(captioner, generation_config=settings).caption([image])[0]


def find_similar(captioner: Captioner, rows: Dataset) -> Callable[[Image.Image], list[tuple[Image.Image, str]]]:
    """Return a function that finds the rows most similar to an image by the base's features (cosine)."""
    known = image_features(captioner, rows, 16)

    def similar(image: Image.Image) -> list[tuple[Image.Image, str]]:
        query = Dataset.from_list([{"image_id": "", "image": image}])
        scores = (known @ image_features(captioner, query, 1)[0]).topk(min(SIMILAR, len(rows)))
        found = rows.select(scores.indices.tolist())
        captions = zip(found["caption"], scores.values.tolist(), strict=True)
        return [
            (_small(load_image(entry)), f"{text} (similarity {score:.2f})")
            for entry, (text, score) in zip(found["image"], captions, strict=True)
        ]

    return similar


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((240, 240))
    return image


def _resized(captioner: Captioner, image: Image.Image) -> Image.Image:
    return image if captioner.image_size is None else resized(image, captioner.processor.image_processor)
