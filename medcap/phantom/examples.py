"""Example images of the Space and of `medcap demo`: phantoms, which have no license conditions and no patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medcap.phantom.images import Phantom, draw

EXAMPLES = {
    "chest X-ray with a mass": Phantom("x-ray", "mass", "right", "upper", "large", 4.0),
    "CT with a cyst": Phantom("ct", "cyst", "left", "lower", "large", 5.0),
    "ultrasound with a hematoma": Phantom("ultrasound", "hematoma", "right", "middle", "large", 4.5),
}


def write_examples(folder: Path) -> dict[str, str]:
    """Draw the examples into a new folder; return their paths by label. The files are always the same."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for label, phantom in EXAMPLES.items():
        pixels = (draw(phantom, rng, 256, 256) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{label}.png")
    return {label: str(folder / f"{label}.png") for label in EXAMPLES}
