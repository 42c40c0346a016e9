"""Decode image files as 8-bit RGB, whatever their samples are. Must not import medcap: a Space runs without it."""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_FILE_BYTES = 2**30  # a DICOM series in one file has some hundred MB
# All others are left out: for PostScript, Pillow runs Ghostscript, which executes what the file contains
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DEPTHS = (8, 10, 12, 14, 16, 24, 32, 64)  # bits of scanners and cameras
CLIPPED = 0.1  # percent of the pixels at each end of the range: a defect pixel would darken all others
_ORIENTATION = 0x0112  # tag of EXIF and TIFF


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file. Raises ValueError unless it is a regular file of at most `MAX_FILE_BYTES`."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")  # reading a pipe could block
    check_size(status.st_size, "bytes")
    with open(path, "rb") as file:
        return file.read()


def check_size(size: int, unit: str) -> None:
    """Raise ValueError for more than `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} {unit}; at most {MAX_FILE_BYTES:,} are read: make the image smaller, or remove it")


def decode_rgb(
    data: bytes, name: str = "", frame: int | None = None, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Return the image in a file as `to_rgb` does.

    TIFF and PNG with samples of other than 8 bits are not decoded by Pillow, which drops the lower bits of 16-bit
    colors, reads signed samples as unsigned, and ignores that a 16-bit TIFF is inverted or a pixel transparent.

    Args:
        data: The content of the file.
        name: Its name, whose extension identifies a DICOM file without preamble.
        frame: Number of the frame, from 0; default: the first, of DICOM the middle one.
        formats: Of Pillow.

    Raises:
        Exception: The content is invalid; the types are those of the decoders.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and (deep := _deep_tiff(data, frame)):
            return deep
        file = io.BytesIO(data)
        file.name = name
        image = Image.open(file, formats=formats)
        if frame is not None:
            frames = getattr(image, "n_frames", 1)
            if not 0 <= frame < frames:
                raise ValueError(f"no frame {frame}: it has {frames}, counted from 0")
            image.seek(frame)
        if image.format == "TIFF" and image.mode.startswith(("I", "F")):  # left over by _deep_tiff
            raise ValueError("the tags of this TIFF are invalid")
        if image.format == "PNG" and data[24] == 16 and not frame:
            return _deep_png(data, image)
        image.load()  # with the warnings as errors: some formats (ICO, GIF) know their size only now
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a PIL image as 8-bit RGB, upright, on white; the first frame if there are several.

    The EXIF orientation is applied, and nothing else turns or flips an image, because captions state left and right.
    Gray images of more than 8 bits (I;16, I, F) are rescaled; `convert("RGB")` would clip 40000 to 255. Transparent
    pixels become white, as on the page of the article.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)[..., None]  # (H, W, 1)
        if (key := image.info.get("transparency")) is not None:
            values = np.concatenate([values, np.where(values == key, 0, 255)], -1)
        image = _eight_bits(values)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _deep_png(data: bytes, image: Image.Image) -> Image.Image:
    """Return a PNG of 16 bits; `image` is the same file, opened by Pillow."""
    import imagecodecs

    samples = imagecodecs.png_decode(data)  # (H, W[, channels]); a transparent value or color becomes an alpha channel
    return to_rgb(_upright(_eight_bits(samples.reshape(*samples.shape[:2], -1)), image.getexif().get(_ORIENTATION, 1)))


def _deep_tiff(data: bytes, frame: int | None) -> Image.Image | None:
    """Return a TIFF with gray or RGB samples of other than 1 to 8 unsigned bits; None for another TIFF."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it logs what it raises
    try:
        page: Any = tifffile.TiffFile(io.BytesIO(data)).pages[frame or 0]
        is_deep = page.photometric in (0, 1, 2) and (page.bitspersample > 8 or page.sampleformat != 1)
    except Exception:  # Pillow reads it, or gives the error
        return None
    if not is_deep:
        return None
    _check_tiff(page)
    samples = page.asarray(squeeze=False)  # (separate channels, 1, H, W, contiguous channels)
    samples = np.moveaxis(samples[:, 0], 0, -1).reshape(*samples.shape[2:4], -1)
    colors = 3 if page.photometric == 2 else 1
    alpha = colors + 1 if page.extrasamples[:1] in ((1,), (2,)) else colors
    image = _eight_bits(samples[..., :alpha], is_inverted=page.photometric == 0)
    if page.extrasamples[:1] == (1,):  # the colors are multiplied by alpha
        image = Image.frombytes("RGBa", image.size, image.convert("RGBA").tobytes()).convert("RGBA")
    return to_rgb(_upright(image, page.tags.valueof(_ORIENTATION, default=1)))


def _check_tiff(page: Any) -> None:
    """Raise ValueError for a TIFF page that is too large, incomplete, or has samples that are not real numbers."""
    pixels = page.imagewidth * page.imagelength
    if pixels > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{page.imagewidth} x {page.imagelength} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")
    if page.dtype is None or page.dtype.kind not in "iuf" or page.imagedepth != 1 or page.samplesperpixel > 4:
        raise ValueError(
            f"TIFF with {page.samplesperpixel} samples of {page.bitspersample} bits per pixel, sample format "
            f"{int(page.sampleformat)}: 1 to 4 integers or floating-point numbers are read"
        )
    if len(page.dataoffsets) < np.prod(page.chunked) or not all(page.databytecounts):
        raise ValueError("a part of the image is missing")  # would be read as zeros


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _eight_bits(samples: NDArray[Any], is_inverted: bool = False) -> Image.Image:
    """Return an L, LA, RGB or RGBA image of samples (H, W, 1 to 4) of any type.

    Gray and floating-point values are stretched from the darkest to the brightest pixel, without `CLIPPED` percent at
    each end; a constant image is black. Unsigned colors keep their brightness: they are divided by the maximum of the
    depth they use, which may be 12 bits of 16. With transparency, 0 stays black, because the darkest pixels may be the
    transparent ones, which do not count.
    """
    channels = samples.shape[-1]
    colors, alpha = np.split(samples, [channels - 1 + channels % 2], -1)  # (H, W, 1 or 3), (H, W, 0 or 1)
    alpha = _scale(alpha, 0, 1 if alpha.dtype.kind == "f" else _depth_max(alpha))
    values = colors[alpha[..., 0] > 0] if alpha.size else colors
    values = values[np.isfinite(values)]
    low, high = _range(values)
    if channels > 2 and samples.dtype.kind == "u":
        low, high = 0, _depth_max(values)
    elif alpha.size:
        low = min(0, low)
    result = np.concatenate([_scale(colors, low, high, is_inverted), alpha], -1)
    return Image.fromarray(result if channels > 1 else result[..., 0])


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """Return min and max without `CLIPPED` percent of the values; of all values if that leaves one value."""
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, CLIPPED, method="lower"), np.percentile(values, 100 - CLIPPED, method="higher")
    return (float(low), float(high)) if high > low else (float(values.min()), float(values.max()))


def _depth_max(values: NDArray[Any]) -> int:
    """Return the largest value of the smallest of `DEPTHS` that holds all values but `CLIPPED` percent."""
    high = _range(values)[1]
    return next(2**bits - 1 for bits in DEPTHS if high < 2**bits)


def _scale(values: NDArray[Any], low: float, high: float, is_inverted: bool = False) -> NDArray[np.uint8]:
    """Map `low` to 0 and `high` to 255, or the reverse; nan becomes 0."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    numbers: NDArray[np.floating[Any]] = values.astype(np.float32 if values.itemsize <= 2 else np.float64)
    scaled = (numbers - low) * (255 / (high - low))
    scaled = np.clip(255 - scaled if is_inverted else scaled, 0, 255)
    return np.rint(np.nan_to_num(scaled, nan=0)).astype(np.uint8)
