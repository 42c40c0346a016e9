"""A Pillow plugin for DICOM: after `register_dicom()`, `PIL.Image.open` and `datasets` read DICOM files.

pydicom (the extra `dicom`) is imported with the first file. No tag is copied into `Image.info`, and no message
contains the value of a tag that does not describe pixels: it could identify the patient.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from medcap.data.dicom_streams import INSTALL, check_inflation, check_stream

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

EXTENSIONS = (".dcm", ".dicom", ".ima")


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether the file has the prefix of PS3.10 section 7.1 and is not an index named DICOMDIR."""
    if os.path.basename(path).upper() == "DICOMDIR":
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


@functools.cache
def register_dicom() -> None:
    """Register `DicomImageFile` with Pillow; later calls do nothing."""
    Image.register_open(DicomImageFile.format, DicomImageFile)
    Image.register_extensions(DicomImageFile.format, list(EXTENSIONS))


class DicomImageFile(ImageFile.ImageFile):
    """One frame of a DICOM file as 8-bit "L" or "RGB": the middle one or, after `seek(n)`, frame n (from 0).

    Gray values are transformed in the order of PS3.4 N.2: modality LUT or rescale (PS3.3 C.11.1); VOI LUT or the
    first window (C.11.2; LINEAR, LINEAR_EXACT or SIGMOID), else the range from min to max without padding
    (C.7.5.1.1.2); inversion for MONOCHROME1 or a presentation LUT shape INVERSE (C.11.6). The functional groups of
    enhanced multi-frame objects (C.7.6.16) apply to their frame. PALETTE COLOR and YBR become RGB; colors of more
    than 8 bits are rescaled. Overlays are not drawn, and the pixel aspect ratio is ignored.

    Raises:
        ValueError: The file has no image, no such frame, truncated pixel data, more pixels than
            `Image.MAX_IMAGE_PIXELS`, or a compression that no installed package reads.
    """

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"

    def _open(self) -> None:
        assert self.fp is not None  # for mypy: Pillow has opened it
        has_magic = self.fp.read(132)[128:] == b"DICM"
        name = str(getattr(self.fp, "name", ""))
        if not has_magic and not name.lower().endswith(EXTENSIONS):
            raise SyntaxError("not a DICOM file")  # Pillow tries its other plugins
        self.fp.seek(0)
        with _pydicom_silenced():
            self._dataset = _read(self.fp)
            if not has_magic and "Rows" not in self._dataset:
                raise SyntaxError("not a DICOM file, although its name says so")
            _check(self._dataset)
            self.n_frames = _integer(self._dataset, "NumberOfFrames") or 1
            self._size = (_integer(self._dataset, "Columns"), _integer(self._dataset, "Rows"))
        self._frame = self.n_frames // 2
        self._mode = "L" if _is_gray(self._dataset) else "RGB"
        self._is_rendered = False

    @property
    def is_animated(self) -> bool:
        """Return whether there are several frames."""
        return self.n_frames > 1

    def tell(self) -> int:
        """Return the number of the frame, from 0."""
        return self._frame

    def seek(self, frame: int) -> None:
        """Select a frame, from 0. Raises ValueError if it does not exist."""
        if not 0 <= frame < self.n_frames:
            raise ValueError(f"no frame {frame}: it has {self.n_frames}, counted from 0")
        self._frame, self._is_rendered = frame, False

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the frame."""
        if not self._is_rendered:
            with _pydicom_silenced():
                pixels = _render(self._dataset, self._frame)
            self.im = Image.fromarray(pixels).im
            self._size, self._is_rendered = (pixels.shape[1], pixels.shape[0]), True
        return Image.Image.load(self)


@contextmanager
def _pydicom_silenced() -> Iterator[None]:
    """Hide pydicom's warnings and log lines, which quote the values of tags."""
    try:
        import pydicom
    except ImportError:
        raise ValueError(f"DICOM files need pydicom: {INSTALL}") from None
    log, level = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _read(file: Any) -> Dataset:
    import pydicom

    check_inflation(file)
    try:
        return pydicom.dcmread(file, force=True)  # force: files of old devices lack the preamble
    except Exception:  # the message may quote a tag
        raise ValueError("invalid DICOM file: it cannot be parsed") from None


def _check(dataset: Dataset) -> None:
    """Raise ValueError for a file without an image, or with one that is too large or cannot be decompressed."""
    names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if not any(name in dataset for name in names) or not dataset.get("Rows") or not dataset.get("Columns"):
        raise ValueError(f"a DICOM file without an image ({_class_name(dataset.get('SOPClassUID'))})")
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if rows * columns > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{columns} x {rows} pixels are more than the {Image.MAX_IMAGE_PIXELS} allowed")
    _check_compression(dataset)


def _integer(dataset: Dataset, name: str) -> int:
    """Return an element as an integer, 0 if it is absent. Raises ValueError without quoting the value."""
    try:
        return int(dataset.get(name) or 0)
    except (TypeError, ValueError):
        raise ValueError(f"invalid DICOM file: {name} is not an integer") from None


def _class_name(uid: Any) -> str:
    """Return the name of a standard UID; other values are not quoted, they could be any text."""
    from pydicom.uid import UID

    name = UID(str(uid or "")).name
    return name if name != str(uid or "") else "of unknown class"


def _check_compression(dataset: Dataset) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # PS3.5 section 10.1: the default
    syntax = dataset.file_meta.TransferSyntaxUID
    if not _is_encapsulated(syntax):
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which pydicom cannot read") from None
    if not decoder.is_available:
        readers = " or ".join(decoder.missing_dependencies)
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which needs a package: {INSTALL} ({readers})")


def _is_encapsulated(syntax: Any) -> bool:
    """Return whether pixels are compressed. Raises ValueError for an unknown syntax, without quoting it."""
    try:
        if syntax.name != str(syntax):
            return bool(syntax.is_encapsulated)
    except (AttributeError, ValueError):
        pass
    raise ValueError("invalid DICOM file: unknown transfer syntax")


def _advice(dataset: Dataset) -> str:
    """Return the packages that also read this compression and are not installed."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    missing = get_decoder(syntax).missing_dependencies if syntax.is_encapsulated else []
    return f"; {syntax.name} ({syntax}) is also read by {' or '.join(missing)}" if missing else ""


def _is_gray(dataset: Dataset) -> bool:
    is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    return (_integer(dataset, "SamplesPerPixel") or 1) == 1 and not is_palette


def _render(dataset: Dataset, frame: int) -> NDArray[np.uint8]:
    """Return the frame (H, W) or (H, W, 3)."""
    _check_size(dataset, frame)
    try:
        return _displayed(dataset, frame)
    except Exception:  # the message may quote a tag
        raise ValueError(f"its pixels cannot be decoded{_advice(dataset)}") from None


def _check_size(dataset: Dataset, frame: int) -> None:
    """Raise ValueError for fewer pixels, or more compressed pixels, than the tags state."""
    rows, columns, frames = (_integer(dataset, name) for name in ("Rows", "Columns", "NumberOfFrames"))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        stream = _stream(dataset, frame, frames or 1)
        if not syntax.name.startswith("RLE"):  # RLE states no size, and expands a byte to at most 64
            check_stream(stream, rows, columns)
    elif "PixelData" in dataset and dataset.get("PhotometricInterpretation") != "YBR_FULL_422":
        values = rows * columns * (_integer(dataset, "SamplesPerPixel") or 1) * (frames or 1)
        if (size := len(dataset.PixelData)) < (expected := values * _integer(dataset, "BitsAllocated") // 8):
            raise ValueError(f"its pixels cannot be decoded: {size:,} of {expected:,} bytes")


def _stream(dataset: Dataset, frame: int, frames: int) -> bytes:
    """Return the compressed frame, located as pydicom does. Raises ValueError for an invalid structure."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import as_pixel_options

    try:
        table = as_pixel_options(dataset).get("extended_offsets")
        if table and len(table[0]) != len(table[1]):
            table = None
        return get_frame(dataset.PixelData, frame, number_of_frames=frames, extended_offsets=table)
    except Exception:
        raise ValueError("its pixels cannot be decoded: the compressed data are invalid") from None


def _displayed(dataset: Dataset, frame: int) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut, pixel_array

    pixels = pixel_array(dataset, index=frame)  # (H, W) or (H, W, 3), YBR already RGB
    if pixels.ndim == 2 and not _is_gray(dataset):
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return _eight_bits(pixels, dataset)
    settings = _settings(dataset, frame)
    values = _windowed(pixels, settings)
    is_inverse = str(settings.get("PresentationLUTShape", "")) == "INVERSE"
    if is_inverse or dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = 1 - values
    return np.rint(255 * values).astype(np.uint8)


def _eight_bits(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Rescale colors of more than 8 bits; those of a palette use all bits of their type."""
    if pixels.dtype == np.uint8:
        return pixels
    is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    highest = np.iinfo(pixels.dtype).max if is_palette else 2 ** int(dataset.BitsStored) - 1
    return np.rint(pixels * (255 / highest)).astype(np.uint8)


def _settings(dataset: Dataset, frame: int) -> Dataset:
    """Return the elements that apply to a frame: those of the file, then those of its functional groups."""
    import pydicom

    settings = pydicom.Dataset()
    settings.file_meta = dataset.file_meta  # has the byte order of look-up tables
    for number in (0x0028, 0x2050):  # image pixel and presentation groups
        settings.update(dataset.group_dataset(number))
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in [*shared, *per_frame]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(group.get(name) or [])[:1]:
                settings.update(item)
    return settings


def _windowed(pixels: NDArray[Any], settings: Dataset) -> NDArray[np.float64]:
    """Return the frame (H, W), 0 to 1."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(pixels, settings).astype(np.float64)
    if settings.get("VOILUTSequence"):
        bits = int(settings.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(apply_voi(values.astype(np.int64), settings) / (2**bits - 1), 0, 1)
    if _has_window(settings):
        ends = np.array([-1e12, 1e12])  # far outside the window: become its low and high output
        windowed = apply_windowing(np.append(values.ravel(), ends), settings)
        low, high = windowed[-2:]
        return np.clip((windowed[:-2] - low) / (high - low), 0, 1).reshape(values.shape)
    return _full_range(values, ~_padding(pixels, settings) & np.isfinite(values))


def _has_window(settings: Dataset) -> bool:
    """Return whether the first window is usable; some files have text, or a width of 0."""
    try:
        centre, width = (np.atleast_1d(settings[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        return np.isfinite(float(centre)) and float(width) >= 1 and settings.get("PixelRepresentation") is not None
    except (KeyError, TypeError, ValueError, IndexError):
        return False


def _padding(pixels: NDArray[Any], settings: Dataset) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the padding."""
    first = settings.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    last = settings.get("PixelPaddingRangeLimit", first)
    return (pixels >= min(first, last)) & (pixels <= max(first, last))


def _full_range(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale the min and max of the values in `mask` to 0 and 1; a constant image is 0."""
    if not mask.any():
        return np.zeros(values.shape)
    low, high = values[mask].min(), values[mask].max()
    scaled = (np.nan_to_num(values, nan=low) - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.clip(scaled, 0, 1)
