"""Decode one frame of a DICOM file: imagecodecs reads JPEG, JPEG-LS and JPEG 2000, pydicom the other syntaxes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from medcap.data.dicom_streams import StreamHeader, check_stream, has_color_transform
from medcap.data.dicom_tags import TagError, element, integer

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_JFIF = re.compile(rb"\xff\xe0..JFIF\0", re.DOTALL)
_ADOBE = re.compile(rb"\xff\xee\0[\x0e-\xff]Adobe.{6}(.)", re.DOTALL)  # the group is its color transform
_LOSSLESS = b"\xff\xc3"


def check_compression(dataset: Dataset) -> None:
    """Raise ValueError for a compression that medcap does not read."""
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if not _is_encapsulated(syntax) or syntax == RLELossless:
        return
    if _codec(syntax) is None:
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which medcap cannot read")


def _is_encapsulated(syntax: Any) -> bool:
    """Return whether pixels are compressed. Raises ValueError for an unknown syntax, without quoting it."""
    try:
        if syntax.name != str(syntax):
            return bool(syntax.is_encapsulated)
    except (AttributeError, ValueError):
        pass
    raise ValueError("invalid DICOM file: unknown transfer syntax")


def _codec(syntax: Any) -> str | None:
    from pydicom import uid

    high_throughput = (uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
    codecs = {
        "jpeg": (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1),
        "jpeg_ls": (uid.JPEGLSLossless, uid.JPEGLSNearLossless),
        "jpeg_2000": (uid.JPEG2000Lossless, uid.JPEG2000, *high_throughput),
    }
    return next((name for name, syntaxes in codecs.items() if syntax in syntaxes), None)


def decode_frame(dataset: Dataset, frame: int) -> tuple[NDArray[Any], int]:
    """Return the stored values (H, W) or RGB colors (H, W, 3) of a frame, and the number of bits they were coded in.

    Raises:
        TagError: The compressed data contradict the tags. This is found before they are decoded.
    """
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    allocated = integer(dataset, "BitsAllocated")
    if not syntax.is_encapsulated:
        _check_length(dataset)
        return pixel_array(dataset, index=frame, correct_unused_bits=False), allocated
    stream = _stream(dataset, frame)
    if (codec := _codec(syntax)) is None:
        _check_rle(stream, dataset)
        pixels = pixel_array(dataset, index=frame, decoding_plugin="pydicom", correct_unused_bits=False)
        return pixels, allocated
    header = check_stream(stream, dataset)
    pixels = _decode(codec, stream, header, dataset)
    if pixels.shape[:2] != (header.height, header.width) or pixels.size != np.prod(header[:3]):
        raise TagError("its pixels cannot be decoded: the decoded size is not the stated one")
    return pixels, header.bits


def _check_length(dataset: Dataset) -> None:
    """Raise TagError for fewer pixels than the tags state."""
    if "PixelData" not in dataset or element(dataset, "PhotometricInterpretation") == "YBR_FULL_422":
        return
    rows, columns, samples, allocated = (
        integer(dataset, name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    values = rows * columns * samples * (integer(dataset, "NumberOfFrames") or 1)
    if (size := len(dataset.PixelData)) < (expected := values * allocated // 8):
        raise TagError(f"its pixels cannot be decoded: {size:,} of {expected:,} bytes")


def _stream(dataset: Dataset, frame: int) -> bytes:
    """Return the compressed frame, located as pydicom does. Raises TagError for an invalid structure."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import as_pixel_options

    try:
        table = as_pixel_options(dataset).get("extended_offsets")
        if table and len(table[0]) != len(table[1]):
            table = None
        frames = integer(dataset, "NumberOfFrames") or 1
        return get_frame(dataset.PixelData, frame, number_of_frames=frames, extended_offsets=table)
    except Exception:
        raise TagError("its pixels cannot be decoded: the compressed data are invalid") from None


def _check_rle(stream: bytes, dataset: Dataset) -> None:
    """Raise TagError if the number of RLE segments is not that of the bytes of a pixel (PS3.5 G.2)."""
    segments = int.from_bytes(stream[:4], "little")
    samples, allocated = integer(dataset, "SamplesPerPixel"), integer(dataset, "BitsAllocated")
    if segments != samples * allocated // 8:
        raise TagError(
            f"its image is compressed in {segments} RLE segments, but its tags state SamplesPerPixel {samples} and "
            f"BitsAllocated {allocated}"
        )


def _decode(codec: str, stream: bytes, header: StreamHeader, dataset: Dataset) -> NDArray[Any]:
    kind = element(dataset, "PhotometricInterpretation")
    if codec == "jpeg":
        if header.channels == 3 and header.marker != _LOSSLESS:
            return imagecodecs.jpeg8_decode(stream, colorspace=_color_space(stream, header, kind), outcolorspace="RGB")
        # naming the same space twice turns off its conversion
        space = "RGB" if header.channels == 3 else None
        return _to_rgb(imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace=space), kind)
    if codec == "jpeg_ls":
        pixels = imagecodecs.jpegls_decode(stream)
        is_planar = header.channels == 3 and pixels.shape[0] == 3
        return _to_rgb(np.moveaxis(pixels, 0, -1) if is_planar else pixels, kind)
    pixels = imagecodecs.jpeg2k_decode(stream)
    return pixels if has_color_transform(stream) else _to_rgb(pixels, kind)


def _color_space(stream: bytes, header: StreamHeader, kind: str) -> str:
    """Return the color space that a lossy JPEG states, as libjpeg does, otherwise that of the tags."""
    start = stream[: header.start]
    if _JFIF.search(start):
        return "YCBCR"
    if adobe := _ADOBE.search(start):
        return "RGB" if adobe[1] == b"\0" else "YCBCR"
    return "RGB" if kind == "RGB" or header.ids in (b"RGB", b"rgb") else "YCBCR"


def _to_rgb(pixels: NDArray[Any], kind: str) -> NDArray[Any]:
    """Convert colors that the codec left in the color space of the tags; YBR_ICT and YBR_RCT are the codec's own."""
    from pydicom.pixels import convert_color_space

    if kind not in ("YBR_FULL", "YBR_FULL_422"):
        return pixels
    if pixels.dtype != np.uint8:
        raise TagError(f"{kind} (PhotometricInterpretation) with more than 8 bits is not supported")
    return convert_color_space(pixels, "YBR_FULL", "RGB")
