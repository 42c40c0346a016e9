"""A Pillow plugin for DICOM: after `register_dicom()`, `PIL.Image.open` and `datasets` read DICOM files.

pydicom (the extra `dicom`) is imported with the first file. No tag is copied into `Image.info`, and no message
contains the value of a tag that does not describe pixels: it could identify the patient.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from medcap.data.dicom_codecs import check_compression, decode_frame
from medcap.data.dicom_colors import eight_bit_colors, palette_colors
from medcap.data.dicom_streams import check_inflation
from medcap.data.dicom_tags import PIXELS, TagError, complete_tags, element, integer
from medcap.data.dicom_values import apply_modality, padding_mask, stored_values
from medcap.data.dicom_windows import Window, file_shades, has_hounsfield_units
from medcap.extras import install_command

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)
EXTENSIONS = (".dcm", ".dicom", ".ima")
NO_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG")  # Modality of objects that are no images
NO_IMAGE_CLASSES = (  # SOP classes with pixels that are no image: segmentations and a dose
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.481.2",
)


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


class NoImageError(ValueError):
    """The file is DICOM, but not an image: a report, a plan, a segmentation, ..."""


class DicomImageFile(ImageFile.ImageFile):
    """One frame of a DICOM file as 8-bit "L" or "RGB": the middle one or, after `seek(n)`, frame n (from 0).

    Gray values are transformed in the order of PS3.4 N.2: modality LUT or rescale (PS3.3 C.11.1); VOI LUT or window
    (C.11.2; see `file_shades`), or the windows given to `use_windows`; inversion for MONOCHROME1 or a presentation LUT
    shape INVERSE (C.11.6). Padding (C.7.5.1.1.2) is black. The functional groups of enhanced multi-frame objects
    (C.7.6.16) apply to their frame. PALETTE COLOR and YBR become RGB; colors of more than 8 bits are rescaled.
    Overlays are not drawn, and the pixel aspect ratio is ignored.

    Raises:
        NoImageError: The file has no image.
        ValueError: It has no such frame, truncated pixel data, more pixels than `Image.MAX_IMAGE_PIXELS`, tags that
            contradict the pixels, or a compression that is not read.
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
            if element(self._dataset, "BurnedInAnnotation") == "YES":
                _warn_of_text(name)
            self.n_frames = integer(self._dataset, "NumberOfFrames") or 1
            self._size = (integer(self._dataset, "Columns"), integer(self._dataset, "Rows"))
        self._frame = self.n_frames // 2
        self._mode = "L" if _is_gray(self._dataset) else "RGB"
        self._windows: tuple[Window, ...] = ()
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

    def use_windows(self, windows: tuple[Window, ...]) -> None:
        """Use one window, or one each for red, green and blue, instead of what the file says.

        Raises:
            ValueError: The file is in color, or the windows are in Hounsfield units and its values are not.
        """
        with _pydicom_silenced():
            settings = _settings(self._dataset, self._frame)
            is_hounsfield = has_hounsfield_units(settings, element(self._dataset, "Modality"))
        if self._mode == "RGB":
            raise ValueError("a window applies to grayscale, and this image is in color")
        if not is_hounsfield and any(window.name for window in windows):
            names = ",".join(window.name for window in windows)
            raise ValueError(f"window {names} is in Hounsfield units, which only CT with a RescaleSlope has")
        self._windows, self._is_rendered = windows, False
        self._mode = "RGB" if len(windows) == 3 else "L"

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the frame."""
        if not self._is_rendered:
            with _pydicom_silenced():
                pixels = _render(self._dataset, self._frame, self._windows)
            self.im = Image.fromarray(pixels).im
            self._size, self._is_rendered = (pixels.shape[1], pixels.shape[0]), True
        return Image.Image.load(self)


def read_windowed(data: bytes, name: str, frame: int | None, windows: tuple[Window, ...]) -> Image.Image:
    """Return the RGB image of a grayscale DICOM file in one window, or one each for red, green and blue.

    Args:
        data: The content of the file.
        name: Its name, whose extension identifies a DICOM file without preamble.
        frame: Number of the frame, from 0; default: the middle one.
        windows: One window, or three.

    Raises:
        ValueError: As `DicomImageFile` and its `use_windows`; the file is not DICOM.
    """
    file = io.BytesIO(data)
    file.name = name
    try:
        image = DicomImageFile(file)
    except SyntaxError:
        raise ValueError("a window applies to DICOM files, and this is another image") from None
    image.seek(image.tell() if frame is None else frame)
    image.use_windows(windows)
    return image.convert("RGB")


@functools.cache  # once per file: training reads it every epoch
def _warn_of_text(name: str) -> None:
    logger.warning("%s: BurnedInAnnotation is YES: text in its pixels may identify the patient", name or "DICOM file")


@contextmanager
def _pydicom_silenced() -> Iterator[None]:
    """Hide pydicom's warnings and log lines, which quote the values of tags."""
    try:
        import pydicom
    except ImportError:
        raise ValueError(f"DICOM files need pydicom: {install_command('dicom')}") from None
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
    """Raise ValueError for a file without an image, or with one that is too large or cannot be decompressed.

    A file of an image class without pixels is incomplete, and not a NoImageError: it must not be skipped.
    """
    if not any(name in dataset for name in PIXELS) or not dataset.get("Rows") or not dataset.get("Columns"):
        name = _class_name(dataset.get("SOPClassUID"))
        if "Image Storage" in name:
            raise ValueError(f"a DICOM image without pixels or size ({name}): the file may be truncated")
        raise NoImageError(f"a DICOM file without an image ({name})")
    if element(dataset, "Modality") in NO_IMAGES or element(dataset, "SOPClassUID") in NO_IMAGE_CLASSES:
        raise NoImageError(f"a DICOM file that is not an image ({_class_name(dataset.get('SOPClassUID'))})")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if rows * columns > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{columns} x {rows} pixels are more than the {Image.MAX_IMAGE_PIXELS} allowed")
    _complete_syntax(dataset)
    check_compression(dataset)
    complete_tags(dataset)


def _complete_syntax(dataset: Dataset) -> None:
    """Set a transfer syntax that is not stated to the one that pydicom has detected and read the file with."""
    from pydicom import uid

    if "TransferSyntaxUID" in dataset.file_meta:
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise TagError("TransferSyntaxUID is missing, and the pixels are compressed")
    is_implicit, is_little = dataset.original_encoding
    explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit


def _class_name(uid: Any) -> str:
    """Return the name of a standard UID; other values are not quoted, they could be any text."""
    from pydicom.uid import UID

    name = UID(str(uid or "")).name
    return name if name != str(uid or "") else "of unknown class"


def _is_gray(dataset: Dataset) -> bool:
    return element(dataset, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")


def _render(dataset: Dataset, frame: int, windows: tuple[Window, ...]) -> NDArray[np.uint8]:
    """Return the frame (H, W) or (H, W, 3)."""
    try:
        pixels, bits = decode_frame(dataset, frame)
        settings = _settings(dataset, frame)
        values = stored_values(pixels, settings, bits)
        if _is_gray(dataset):
            return _gray(pixels, values, settings, element(dataset, "Modality"), windows)
        return palette_colors(values, dataset) if values.ndim == 2 else eight_bit_colors(values, settings)
    except TagError:
        raise
    except Exception:  # the message may quote a tag
        raise ValueError("its pixels cannot be decoded") from None


def _gray(
    pixels: NDArray[Any], stored: NDArray[Any], settings: Dataset, modality: Any, windows: tuple[Window, ...]
) -> NDArray[np.uint8]:
    """Return stored values (H, W) as displayed, or (H, W, 3) for three windows; padding is black."""
    padding = padding_mask(pixels, stored, settings)
    values = apply_modality(stored, settings)
    channels = [window.shades(values) for window in windows] or [file_shades(values, padding, settings, modality)]
    shades = np.stack(channels, axis=-1)
    kind, shape = (element(settings, name) for name in ("PhotometricInterpretation", "PresentationLUTShape"))
    if kind == "MONOCHROME1" or shape == "INVERSE":
        shades = 1 - shades
    shades[padding | np.isnan(values)] = 0
    return np.rint(255 * (shades if len(channels) == 3 else shades[..., 0])).astype(np.uint8)


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
