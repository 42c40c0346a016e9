"""Return DICOM colors with 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcap.data.dicom_tags import TagError, integer

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CHANNELS = ("Red", "Green", "Blue")


def eight_bit_colors(pixels: NDArray[Any], settings: Dataset) -> NDArray[np.uint8]:
    """Rescale colors (H, W, 3) of more than 8 bits."""
    highest = 2 ** max(8, integer(settings, "BitsStored")) - 1
    return np.rint(pixels * (255 / highest)).astype(np.uint8)


def palette_colors(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Return the colors (H, W, 3) of palette indices (PS3.3 C.7.6.3.1.5).

    Entries of 16 bits that are all below 256 are in the low byte. Raises TagError for a missing palette.
    """
    from pydicom.pixels import apply_color_lut

    for name in (f"{channel}PaletteColorLookupTableDescriptor" for channel in _CHANNELS):
        if len(dataset.get(name) or ()) != 3:
            raise TagError(f"{name} is missing or does not have three values")
    entries, first = (int(number) % 2**16 for number in dataset.RedPaletteColorLookupTableDescriptor[:2])
    table = apply_color_lut(np.arange(entries or 2**16) + first, dataset)  # pydicom expands segmented palettes
    if integer(dataset, "PixelRepresentation") and first >= 2**15:
        first -= 2**16
    colors = table[np.clip(values - first, 0, len(table) - 1)]
    return np.rint(colors * (255 / (255 if table.max() < 256 else 2**16 - 1))).astype(np.uint8)
