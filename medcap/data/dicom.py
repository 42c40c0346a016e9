"""Read DICOM files as Pillow images: after `register_dicom()`, `PIL.Image.open` and `datasets` read them.

pydicom (the extra `dicom`) decodes the files and is imported with the first of them. Only the image is returned: no
tag is copied into `Image.info`, and no message contains the value of a tag that does not describe pixels.
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
    """Whether a file begins as PS3.10 section 7.1 says, whatever its name; a DICOMDIR is an index, not an image."""
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
    """One frame of a DICOM file as 8-bit "L" or "RGB"; the middle one, and after `seek(n)` the n-th (from 0).

    Grey values go through, in the order of PS3.4 N.2: modality LUT or rescale (PS3.3 C.11.1); VOI LUT, or the first
    window (C.11.2; LINEAR, LINEAR_EXACT or SIGMOID), or where there is neither, minimum to maximum without the
    padding (C.7.5.1.1.2); inversion for MONOCHROME1 or a presentation LUT shape INVERSE (C.11.6). The
    functional groups of enhanced multi-frame objects (C.7.6.16) count for their frame. PALETTE COLOR and YBR become
    RGB; colours of more than 8 bits are scaled. Overlays are not drawn, and pixels that are not square stay as stored.

    Raises ValueError, one line, for a file without an image, a compression that no installed package reads, a missing
    frame, pixel data that are cut short, and more pixels than `Image.MAX_IMAGE_PIXELS`.
    """

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"

    def _open(self) -> None:
        assert self.fp is not None  # for mypy: Pillow has opened it
        has_magic = self.fp.read(132)[128:] == b"DICM"
        name = str(getattr(self.fp, "name", ""))
        if not has_magic and not name.lower().endswith(EXTENSIONS):
            raise SyntaxError("not a DICOM file")  # and Pillow asks its other plugins
        self.fp.seek(0)
        with _discreet():
            self._dataset = _read(self.fp)
            if not has_magic and "Rows" not in self._dataset:
                raise SyntaxError("another file under the name of a DICOM file")
            _check(self._dataset)
            self.n_frames = _whole(self._dataset, "NumberOfFrames") or 1
            self._size = (_whole(self._dataset, "Columns"), _whole(self._dataset, "Rows"))
        self._frame = self.n_frames // 2
        self._mode = "L" if _is_grey(self._dataset) else "RGB"
        self._is_rendered = False

    @property
    def is_animated(self) -> bool:
        """Whether there are several frames."""
        return self.n_frames > 1

    def tell(self) -> int:
        """Return the number of the frame, from 0."""
        return self._frame

    def seek(self, frame: int) -> None:
        """Choose a frame, from 0; ValueError for one that is not there."""
        if not 0 <= frame < self.n_frames:
            raise ValueError(f"there is no frame {frame}: it has {self.n_frames}, counted from 0")
        self._frame, self._is_rendered = frame, False

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the frame."""
        if not self._is_rendered:
            with _discreet():
                pixels = _render(self._dataset, self._frame)
            self.im = Image.fromarray(pixels).im
            self._size, self._is_rendered = (pixels.shape[1], pixels.shape[0]), True
        return Image.Image.load(self)


@contextmanager
def _discreet() -> Iterator[None]:
    """Keep pydicom's warnings and log lines, which quote the values of tags, from being seen."""
    try:
        import pydicom
    except ImportError:
        raise ValueError(f"a DICOM file, which needs pydicom: {INSTALL}") from None
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
    except Exception:  # its words may quote a tag
        raise ValueError("not a sound DICOM file: it cannot be parsed") from None


def _check(dataset: Dataset) -> None:
    """Raise ValueError for a file without an image, or with one that is too large or cannot be decompressed."""
    kinds = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if not any(kind in dataset for kind in kinds) or not dataset.get("Rows") or not dataset.get("Columns"):
        what = dataset.get("SOPClassUID")
        raise ValueError(f"a DICOM file without an image ({_known(what) if what else 'of no stated class'})")
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    if rows * columns > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{columns} x {rows} pixels are more than the {Image.MAX_IMAGE_PIXELS} allowed")
    _check_compression(dataset)


def _whole(dataset: Dataset, name: str) -> int:
    """Return an element as a whole number, 0 where it is absent. ValueError that does not quote what stands there."""
    try:
        return int(dataset.get(name) or 0)
    except (TypeError, ValueError):
        raise ValueError(f"not a sound DICOM file: its {name} is no whole number") from None


def _known(uid: Any) -> str:
    """Return the name of a UID of the standard; of others nothing, for any text may stand in their place."""
    from pydicom.uid import UID

    name = UID(str(uid)).name
    return name if name != str(uid) else "of a class that the standard does not know"


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
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which no package for pydicom reads") from None
    if not decoder.is_available:
        readers = " or ".join(decoder.missing_dependencies)
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which needs a package: {INSTALL} ({readers})")


def _is_encapsulated(syntax: Any) -> bool:
    """Whether pixels are compressed. ValueError for a syntax that is none of the standard's, which is not quoted."""
    try:
        if syntax.name != str(syntax):
            return bool(syntax.is_encapsulated)
    except (AttributeError, ValueError):
        pass
    raise ValueError("not a sound DICOM file: its transfer syntax is none that the standard knows")


def _advice(dataset: Dataset) -> str:
    """Return what else might read the pixels: the packages for this compression that are not installed."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    missing = get_decoder(syntax).missing_dependencies if syntax.is_encapsulated else []
    return f"; {syntax.name} ({syntax}) is also read by {' or '.join(missing)}" if missing else ""


def _is_grey(dataset: Dataset) -> bool:
    return (_whole(dataset, "SamplesPerPixel") or 1) == 1 and dataset.get(
        "PhotometricInterpretation"
    ) != "PALETTE COLOR"


def _render(dataset: Dataset, frame: int) -> NDArray[np.uint8]:
    """Return the frame (H, W) or (H, W, 3)."""
    _check_size(dataset, frame)
    try:
        return _shown(dataset, frame)
    except Exception:  # its words may quote a tag, and a tag may hold anything
        raise ValueError(f"its pixels cannot be decoded{_advice(dataset)}") from None


def _check_size(dataset: Dataset, frame: int) -> None:
    """Raise ValueError for pixels that are fewer, or compressed ones that are more, than the tags say."""
    rows, columns, frames = (_whole(dataset, name) for name in ("Rows", "Columns", "NumberOfFrames"))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        stream = _stream(dataset, frame, frames or 1)
        if not syntax.name.startswith("RLE"):  # run lengths state no size, and make 64 bytes of one at the most
            check_stream(stream, rows, columns)
    elif "PixelData" in dataset and dataset.get("PhotometricInterpretation") != "YBR_FULL_422":
        values = rows * columns * (_whole(dataset, "SamplesPerPixel") or 1) * (frames or 1)
        if (there := len(dataset.PixelData)) < (needed := values * _whole(dataset, "BitsAllocated") // 8):
            raise ValueError(f"its pixels cannot be decoded: {there:,} bytes, less than the {needed:,} expected")


def _stream(dataset: Dataset, frame: int, frames: int) -> bytes:
    """Return the compressed frame, found as pydicom finds it. ValueError where its parts are not sound."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import as_pixel_options

    try:
        table = as_pixel_options(dataset).get("extended_offsets")
        if table and len(table[0]) != len(table[1]):
            table = None  # as pydicom does
        return get_frame(dataset.PixelData, frame, number_of_frames=frames, extended_offsets=table)
    except Exception:
        raise ValueError("its pixels cannot be decoded: the parts of the compressed data are not sound") from None


def _shown(dataset: Dataset, frame: int) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut, pixel_array

    pixels = pixel_array(dataset, index=frame)  # (H, W) or (H, W, 3), YBR already RGB
    if pixels.ndim == 2 and not _is_grey(dataset):
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return _eight_bits(pixels, dataset)
    settings = _settings(dataset, frame)
    shown = _windowed(pixels, settings)
    inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1" or _shape(settings) == "INVERSE"
    return np.rint(255 * (1 - shown if inverted else shown)).astype(np.uint8)


def _eight_bits(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Scale colours of more than 8 bits down; those of a palette have as many as its type."""
    if pixels.dtype == np.uint8:
        return pixels
    is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    highest = np.iinfo(pixels.dtype).max if is_palette else 2 ** int(dataset.BitsStored) - 1
    return np.rint(pixels * (255 / highest)).astype(np.uint8)


def _settings(dataset: Dataset, frame: int) -> Dataset:
    """Return what is said of a frame: the file's own elements, then those of its functional groups."""
    import pydicom

    settings = pydicom.Dataset()
    settings.file_meta = dataset.file_meta  # tells the byte order of look-up tables
    for number in (0x0028, 0x2050):  # what is about pixels and about their presentation
        settings.update(dataset.group_dataset(number))
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in [*shared, *own]:
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
        ends = np.array([-1e12, 1e12])  # what lies far below and far above the window, to learn its two ends
        windowed = apply_windowing(np.append(values.ravel(), ends), settings)
        low, high = windowed[-2:]
        return np.clip((windowed[:-2] - low) / (high - low), 0, 1).reshape(values.shape)
    return _full_range(values, ~_padding(pixels, settings) & np.isfinite(values))


def _has_window(settings: Dataset) -> bool:
    """Whether a first window can be used; some files hold no number, or a width of 0."""
    try:
        centre, width = (np.atleast_1d(settings[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        return np.isfinite(float(centre)) and float(width) >= 1 and settings.get("PixelRepresentation") is not None
    except (KeyError, TypeError, ValueError, IndexError):
        return False


def _padding(pixels: NDArray[Any], settings: Dataset) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the padding, by the stored values."""
    first = settings.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    last = settings.get("PixelPaddingRangeLimit", first)
    return (pixels >= min(first, last)) & (pixels <= max(first, last))


def _full_range(values: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale the values so that the minimum and maximum of those `counted` become 0 and 1; a flat image is 0."""
    if not counted.any():
        return np.zeros(values.shape)
    low, high = values[counted].min(), values[counted].max()
    scaled = (np.nan_to_num(values, nan=low) - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.clip(scaled, 0, 1)


def _shape(settings: Dataset) -> str:
    return str(settings.get("PresentationLUTShape", ""))
