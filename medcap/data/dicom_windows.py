"""Map the values of a grayscale DICOM frame to shades: VOI LUT, or window of the file, its modality or the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcap.data.dicom_tags import TagError, element, integer, number
from medcap.data.dicom_values import apply_modality, look_up

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # PS3.3 C.11.2.1.3
NAMED_WINDOWS = {  # center and width in Hounsfield units
    "brain": (40.0, 80.0),
    "soft": (40.0, 400.0),
    "liver": (30.0, 150.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
}
HOUNSFIELD = (None, "HU", "HU_MOD", "US")  # RescaleType; US is unspecified
EMISSION = ("NM", "PT")
EMISSION_PERCENTILE = 99.5  # a bladder or an injection site is far brighter than the rest


@dataclass(frozen=True)
class Window:
    """A window center and width; `function` is a VOILUTFunction, `name` that of a window in Hounsfield units."""

    center: float
    width: float
    function: str = "LINEAR"
    name: str = ""

    def shades(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values as 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

        LINEAR is defined for widths from 1; a narrower window, as of float pixels, is LINEAR_EXACT.
        """
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
        if self.function == "LINEAR_EXACT" or self.width < 1:
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        start = values - (self.center - 0.5)
        return np.clip(start / (self.width - 1) + 0.5, 0, 1) if self.width > 1 else (start > 0).astype(np.float64)


def parse_windows(text: str) -> tuple[Window, ...]:
    """Return the windows of `--window`: NAME, or CENTER,WIDTH, or three names for red, green and blue.

    Raises:
        ValueError: It is none of these.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) in (1, 3) and all(part in NAMED_WINDOWS for part in parts):
        return tuple(Window(*NAMED_WINDOWS[part], name=part) for part in parts)
    try:
        center, width = (float(part) for part in parts)
        if np.isfinite(center) and 0 < width < np.inf:
            return (Window(center, width),)
    except ValueError:
        pass
    raise ValueError(
        f"window {text!r}: it can be a name, three names for red, green and blue (lung,soft,bone), or center and "
        f"width (40,400; the width above 0); names: {', '.join(NAMED_WINDOWS)}"
    )


def has_hounsfield_units(settings: Dataset, modality: Any) -> bool:
    """Return whether the values after the modality transform are Hounsfield units."""
    is_rescaled = any(element(settings, name) is not None for name in ("RescaleSlope", "RescaleIntercept"))
    return modality == "CT" and is_rescaled and element(settings, "RescaleType") in HOUNSFIELD


def file_shades(
    values: NDArray[np.float64], padding: NDArray[np.bool_], settings: Dataset, modality: Any
) -> NDArray[np.float64]:
    """Return values (H, W) as 0 to 1 as the file says, otherwise by its modality.

    The first item of the VOI LUT is used, else the first window, else for CT in Hounsfield units the window "soft",
    for NM and PT from 0 to the 99.5th percentile, and otherwise from minimum to maximum; finite values that are not
    padding count.
    """
    if item := element(settings, "VOILUTSequence"):
        entries, bits = look_up(values, item, settings, _is_signed(settings))
        return np.clip(entries / (2**bits - 1), 0, 1)
    if window := _file_window(settings):
        return window.shades(values)
    if has_hounsfield_units(settings, modality):
        return Window(*NAMED_WINDOWS["soft"]).shades(values)
    used = values[~padding & np.isfinite(values)]
    if not used.size:
        return np.zeros(values.shape)
    if modality in EMISSION and (high := np.percentile(used, EMISSION_PERCENTILE)) > 0:
        return np.clip(values / high, 0, 1)
    low, high = used.min(), used.max()
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)


def _is_signed(settings: Dataset) -> bool:
    """Return whether the modality transform can have negative values: then the first value of a VOI LUT is signed."""
    if element(settings, "ModalityLUTSequence"):
        return False
    bits, is_signed = integer(settings, "BitsStored"), integer(settings, "PixelRepresentation")
    range_ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if is_signed else [0, 2**bits - 1])
    return bool(apply_modality(range_ends, settings).min() < 0)


def _file_window(settings: Dataset) -> Window | None:
    """Return the first window, or None; files write a width of 0 for no window."""
    center, width = number(settings, "WindowCenter"), number(settings, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    function = element(settings, "VOILUTFunction") or "LINEAR"
    if function not in FUNCTIONS:
        raise TagError(f"VOILUTFunction is unknown: it can be {', '.join(FUNCTIONS)}")
    return Window(center, width, function)
