"""Read and check the DICOM tags that describe pixels. No message quotes text: it might identify the patient."""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SAMPLES = {  # PS3.3 C.7.6.3.1.2
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class TagError(ValueError):
    """The tags contradict each other or the pixels; the message names the tag."""


def element(dataset: Dataset, name: str) -> Any:
    """Return the first value of an element, None if it is absent or empty. Raises TagError if it cannot be read."""
    try:
        value = dataset.get(name)
        if isinstance(value, MutableSequence):  # of values, or of the items of a sequence
            value = value[0] if len(value) else None
    except Exception:  # the message may quote the value
        raise TagError(f"invalid DICOM file: {name} cannot be read") from None
    return None if value in ("", b"") else value


def number(dataset: Dataset, name: str) -> float | None:
    """Return the first value of an element as a finite number, or None if it is absent or empty.

    Raises:
        TagError: It is not a finite number.
    """
    value = element(dataset, name)
    try:
        result = None if value is None else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if result is not None and not math.isfinite(result):
        raise TagError(f"invalid DICOM file: {name} is not a number")
    return result


def integer(dataset: Dataset, name: str) -> int:
    """Return an element as an integer, 0 if it is absent. Raises TagError if it is not an integer."""
    value = element(dataset, name)
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        raise TagError(f"invalid DICOM file: {name} is not an integer") from None


def complete_tags(dataset: Dataset) -> None:
    """Set the absent tags that follow from others, and check that the tags of the pixels agree.

    SamplesPerPixel follows from PhotometricInterpretation (PS3.3 C.7.6.3.1.2), HighBit from BitsStored (PS3.5 8.1.1).

    Raises:
        TagError: The first tag that is missing or wrong.
    """
    _complete_samples(dataset)
    if "PixelData" in dataset:
        _complete_bits(dataset)
        if integer(dataset, "SamplesPerPixel") > 1:
            _complete_colors(dataset)


def _complete_samples(dataset: Dataset) -> None:
    kind = element(dataset, "PhotometricInterpretation")
    if kind not in SAMPLES:
        problem = "missing" if kind is None else "unknown"
        raise TagError(f"PhotometricInterpretation is {problem}: it can be {', '.join(SAMPLES)}")
    if element(dataset, "SamplesPerPixel") is None:
        dataset.SamplesPerPixel = SAMPLES[kind]
    if (samples := integer(dataset, "SamplesPerPixel")) != SAMPLES[kind]:
        raise TagError(f"SamplesPerPixel is {samples}, but {kind} (PhotometricInterpretation) has {SAMPLES[kind]}")


def _complete_bits(dataset: Dataset) -> None:
    for name in ("BitsAllocated", "BitsStored", "PixelRepresentation"):
        if element(dataset, name) is None:
            raise TagError(f"{name} is missing")
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if element(dataset, "HighBit") is None:
        dataset.HighBit = stored - 1
    high = integer(dataset, "HighBit")
    if allocated not in (1, 8, 16, 32):
        raise TagError(f"BitsAllocated is {allocated}: it can be 1, 8, 16 or 32")
    if not 1 <= stored <= high + 1 <= allocated:
        raise TagError(f"BitsStored {stored}, HighBit {high} and BitsAllocated {allocated} contradict each other")
    if (sign := integer(dataset, "PixelRepresentation")) not in (0, 1):
        raise TagError(f"PixelRepresentation is {sign}: it can be 0 or 1")


def _complete_colors(dataset: Dataset) -> None:
    """Check the tags that only uncompressed colors need: a compressed frame states its own."""
    kind = element(dataset, "PhotometricInterpretation")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.PlanarConfiguration = integer(dataset, "PlanarConfiguration")
    elif element(dataset, "PlanarConfiguration") is None and kind != "YBR_FULL_422":
        raise TagError(f"PlanarConfiguration is missing, which {kind} (PhotometricInterpretation) needs")
    elif kind.startswith("YBR") and (allocated := integer(dataset, "BitsAllocated")) != 8:
        raise TagError(f"BitsAllocated is {allocated}: {kind} (PhotometricInterpretation) can have 8")
