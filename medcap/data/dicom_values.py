"""Turn decoded DICOM pixels into the values that a window applies to (PS3.4 N.2), and find their padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcap.data.dicom_tags import TagError, element, integer, number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WORD = 2**16


def stored_values(pixels: NDArray[Any], settings: Dataset, coded_bits: int) -> NDArray[Any]:
    """Return pixels without unused bits, left-aligned ones (HighBit above BitsStored - 1) shifted, with their sign.

    Args:
        pixels: Decoded pixels; floats are returned as they are.
        settings: Elements of the image pixel module.
        coded_bits: Bits that the pixels are coded in; a compressed stream may have fewer than are allocated.
    """
    if pixels.dtype.kind == "f":
        return pixels
    stored, high = integer(settings, "BitsStored"), integer(settings, "HighBit")
    shift = high + 1 - stored if coded_bits > high else 0
    wide: NDArray[Any] = pixels.astype(np.int64 if pixels.dtype.itemsize > 2 else np.int32)
    return _with_sign(wide >> shift, min(stored, coded_bits), settings)


def _with_sign(values: NDArray[Any], bits: int, settings: Dataset) -> NDArray[Any]:
    values = values & ((1 << bits) - 1)
    return values - ((values >> (bits - 1)) << bits) if integer(settings, "PixelRepresentation") else values


def padding_mask(pixels: NDArray[Any], values: NDArray[Any], settings: Dataset) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the padding (PS3.3 C.7.5.1.1.2).

    PixelPaddingValue is compared as the bits of a pixel, because files write it with the VR of the other sign, or OW.
    """
    if values.dtype.kind == "f":
        names = ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit")
        ends = np.array([end for name in names if (end := number(settings, name)) is not None])
    else:
        names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
        ends = np.array([end for name in names if (end := _bits(settings, name)) is not None], np.int64)
        stored = integer(settings, "BitsStored")
        if not integer(settings, "PixelRepresentation") and (ends >> stored).any():
            values = pixels  # it is in the unused bits, as old CT writes it
        else:
            ends = _with_sign(ends, stored, settings)
    if not ends.size:
        return np.zeros(values.shape, bool)
    return (values >= ends.min()) & (values <= ends.max())


def _bits(settings: Dataset, name: str) -> int | None:
    """Return an element of the size of a pixel as an unsigned integer, or None if it is absent."""
    value = element(settings, name)
    allocated = integer(settings, "BitsAllocated")
    if isinstance(value, bytes):
        value = int.from_bytes(value[: allocated // 8], byte_order(settings))
    if value is not None and not isinstance(value, int):
        raise TagError(f"invalid DICOM file: {name} is not an integer")
    return None if value is None else value & ((1 << allocated) - 1)


def byte_order(settings: Dataset) -> Any:
    """Return "little" or "big"."""
    return "little" if settings.file_meta.TransferSyntaxUID.is_little_endian else "big"


def apply_modality(values: NDArray[Any], settings: Dataset) -> NDArray[np.float64]:
    """Return values after the modality LUT, or the rescale slope and intercept (PS3.3 C.11.1).

    A slope or intercept that is alone or empty is 1 or 0. Raises TagError for a slope of 0.
    """
    if items := element(settings, "ModalityLUTSequence"):
        return look_up(values, items, settings, bool(integer(settings, "PixelRepresentation")))[0].astype(np.float64)
    slope, intercept = number(settings, "RescaleSlope"), number(settings, "RescaleIntercept")
    if slope == 0:
        raise TagError("RescaleSlope is 0: it would make all pixels equal")
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def look_up(values: NDArray[Any], item: Dataset, settings: Dataset, is_signed: bool) -> tuple[NDArray[np.int64], int]:
    """Return the entries of a look-up table for values (PS3.3 C.11.1.1), and the number of bits of the entries.

    Args:
        values: Its input; values outside of its range have the first or last entry.
        item: Has LUTDescriptor and LUTData.
        settings: Has the byte order.
        is_signed: Whether its first input value is signed; the VR of the descriptor says so only in some files.
    """
    descriptor = _words(item, "LUTDescriptor", settings)
    if len(descriptor) != 3:
        raise TagError("LUTDescriptor is missing or does not have three values")
    entries, first, bits = (int(word) for word in descriptor)
    table = _table(item, settings, entries or _WORD)
    first -= _WORD if is_signed and first >= _WORD // 2 else 0
    index = np.clip(np.rint(np.nan_to_num(values)) - first, 0, len(table) - 1).astype(np.int64)
    return table[index], _entry_bits(table, bits)


def _words(item: Dataset, name: str, settings: Dataset) -> NDArray[np.int64]:
    """Return the 16-bit words of an element, unsigned."""
    value = item.get(name)
    if isinstance(value, bytes):
        value = np.frombuffer(value[: len(value) // 2 * 2], "<u2" if byte_order(settings) == "little" else ">u2")
    try:
        return np.atleast_1d(np.asarray([] if value is None else value, np.int64)) % _WORD
    except (TypeError, ValueError, OverflowError):
        raise TagError(f"invalid DICOM file: {name} is not a list of integers") from None


def _table(item: Dataset, settings: Dataset, entries: int) -> NDArray[np.int64]:
    words = _words(item, "LUTData", settings)
    if len(words) < entries <= 2 * len(words):  # two entries of 8 bits in a word
        words = words.astype("<u2").view(np.uint8).astype(np.int64)
    if len(words) < entries:
        raise TagError(f"LUTData has {len(words):,} of the {entries:,} entries that LUTDescriptor states")
    return words[:entries]


def _entry_bits(table: NDArray[np.int64], stated: int) -> int:
    """Return the number of bits of the entries; many files state 16, the size of a word, for entries of 12 bits."""
    used = max(8, int(table.max()).bit_length())
    return used if stated >= 16 or used > stated else stated
