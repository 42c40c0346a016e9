"""Read images of any format as 8-bit RGB, and convert them to `pixel_values` on access."""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from medcap.data import raster
from medcap.data.dicom import is_dicom, read_windowed, register_dicom
from medcap.data.dicom_windows import Window

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers.image_processing_utils import BaseImageProcessor

    from medcap.data.augmentation import Augmentation, View

DIGEST_BYTES = 16
FORMATS = (*raster.FORMATS, "DICOM")
PIXEL_VERSION = 2  # increase it when a file gives other pixels: caches depend on it
Data = TypeVar("Data", datasets.Dataset, datasets.DatasetDict)
_Content = tuple[bytes, str] | Image.Image  # bytes and name of an image file, or a PIL image


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the file name extensions of `FORMATS`, lower case with the dot: .jpg, .png, .tif, .dcm, ..."""
    register_dicom()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the extension of an image, or no extension and DICOM content (IM000001)."""
    extension = os.path.splitext(path)[1].lower()
    return extension in image_extensions() or (not extension and os.path.isfile(path) and is_dicom(path))


def index_images(source: str | os.PathLike[str]) -> dict[str, str]:
    """Return {file name without extension: absolute path or zip:// URL} of the images in a folder or a zip.

    The folders inside a zip are ignored; those inside a folder are not searched. No image is read.

    Raises:
        ValueError: Two images have the same name, or the zip is invalid.
    """
    source = os.path.abspath(source)
    if os.path.isdir(source):
        files, suffix = [os.path.join(source, name) for name in os.listdir(source)], ""
    else:
        files, suffix = [f"zip://{member}" for member in _zip_members(source)], f"::{source}"
    images: dict[str, str] = {}
    for file in filter(is_image, files):
        name = os.path.splitext(os.path.basename(file))[0]
        if name in images:
            raise ValueError(f"two images are named {name}: {images[name]} and {file}{suffix}")
        images[name] = file + suffix
    return images


def _zip_members(archive: str) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return file.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: {error}; is the download incomplete?") from error


def load_image(entry: Image.Image | Mapping[str, Any] | bytes | str | os.PathLike[str]) -> Image.Image:
    """Return the RGB image of an entry of an image column.

    Args:
        entry: A PIL image, the bytes of a file, a path as for `read_image`, or the `{"bytes": ..., "path": ...}` of a
            column cast to `datasets.Image(decode=False)`.

    Raises:
        ValueError: As `read_image`.
    """
    return _decode(_read_entry(entry))


def read_image(
    path: str | os.PathLike[str], frame: int | None = None, windows: tuple[Window, ...] = ()
) -> Image.Image:
    """Return the RGB image in a file, or in a zip: `zip://member::/path/archive.zip` as in `datasets` and fsspec.

    Each process opens a zip once; `datasets` opens it again for every image. The format is detected by content.

    Args:
        path: Path or URL.
        frame: Number of the frame, from 0; default: the middle one of a DICOM file, else the first.
        windows: One window, or one each for red, green and blue, of a grayscale DICOM file, instead of its own.

    Raises:
        ValueError: The file is missing, truncated, not an image, has no such frame, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`. The message is one line with path and cause.
    """
    return _decode(_read_entry(path), frame, windows)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a PIL image as `medcap.data.raster.to_rgb` does. Raises ValueError as `read_image`."""
    with _errors_named(getattr(image, "filename", "") or "in memory"):
        return raster.to_rgb(image)


def _read_entry(entry: Any) -> _Content:
    if isinstance(entry, Image.Image):
        return entry
    if not isinstance(entry, (bytes, Mapping)):
        entry = {"path": os.fspath(entry)}
    data, path = (entry, None) if isinstance(entry, bytes) else (entry.get("bytes"), entry.get("path"))
    if data is None and path:
        with _errors_named(path):
            data = _read_bytes(path)
    return data or b"", path or "bytes"


def _read_bytes(path: str) -> bytes:
    if path.startswith("zip://"):
        member, _, archive = path.removeprefix("zip://").rpartition("::")
        opened = _open_zip(archive, os.getpid(), os.stat(archive).st_mtime_ns)
        raster.check_size(opened.getinfo(member).file_size, "bytes when unpacked")  # some KB can hold many GB of zeros
        return opened.read(member)
    return raster.read_bytes(path)


@functools.lru_cache(maxsize=8)
def _open_zip(archive: str, pid: int, modified: int) -> zipfile.ZipFile:
    """Open an archive once per process and modification time: forked workers must not share a file position."""
    return zipfile.ZipFile(archive)


def _decode(content: _Content, frame: int | None = None, windows: tuple[Window, ...] = ()) -> Image.Image:
    if isinstance(content, Image.Image):
        return to_rgb(content)
    data, name = content
    with _errors_named(name):
        if windows:
            return read_windowed(data, name, frame, windows)
        register_dicom()
        return raster.decode_rgb(data, name, frame, FORMATS)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turn every error into a ValueError `cannot read image NAME: cause`."""
    try:
        yield
    # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, IndexError, ...; zipfile adds its own
    except Exception as error:
        raise ValueError(f"cannot read image {name}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's message contains a memory address
        return f"not an image in a format that is read ({', '.join(sorted(FORMATS))})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split()) or type(error).__name__


def image_digest(entry: Any) -> bytes:
    """Return 16 bytes that identify the content of an entry of an image column (see `load_image`).

    Files are identified by their bytes, not by name or time. Raises ValueError for a file that cannot be read.
    """
    return _digest(_read_entry(entry))


def _digest(content: _Content) -> bytes:
    if isinstance(content, Image.Image):
        data = repr((content.mode, content.size)).encode() + content.tobytes()
    else:
        data = content[0]
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class ImageTransform:
    """Replace the column "image" by the model's inputs; `with_pixel_values` sets it as a data set's transform.

    BLIP's `pixel_values` are the bytes of the resized image: `medcap.modeling.blip_fast` rescales and normalizes them
    once, on its device.

    Args:
        pixels: Makes the model's input (3, H, W) from an RGB image, or a BLIP image processor, see `resized`.
        cached_features: Returns the features of an image, or of a view of it, by its digest, or None.
        augmentation: Changes training images before `pixels`; it is shared, and its epoch is set from outside.
    """

    pixels: "Callable[[Image.Image], torch.Tensor] | BaseImageProcessor"
    cached_features: Callable[[bytes], torch.Tensor | None] | None = None
    augmentation: "Augmentation | None" = None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return `batch` with "pixel_values" (tensors (3, H, W)) instead of "image".

        With `cached_features` also "digest" (bytes) and "features" ((1 + patches, width) or None); an image with
        features is not decoded, and its "pixel_values" is None. A file is read once. Raises ValueError with image_id
        and path for an image that cannot be decoded.
        """
        columns = {name: column for name, column in batch.items() if name != "image"}
        if "image" not in batch:  # dataset["caption"] reads one column
            return columns
        ids = batch.get("image_id", range(len(batch["image"])))
        rows = [self._row(entry, image_id) for entry, image_id in zip(batch["image"], ids, strict=True)]
        return {**columns, **{name: [row[name] for row in rows] for name in (rows[0] if rows else ())}}

    def _row(self, entry: Any, image_id: Any) -> dict[str, Any]:
        try:
            content = _read_entry(entry)
            if self.augmentation is None and self.cached_features is None:
                return {"pixel_values": self._pixels(content)}
            digest = _digest(content)
            view = None if self.augmentation is None else self.augmentation.view(digest)
            if self.cached_features is None:
                return {"pixel_values": self._pixels(content, view)}
            digest = digest if view is None else view.digest
            features = self.cached_features(digest)
            pixels = self._pixels(content, view) if features is None else None
        except ValueError as error:
            raise ValueError(f"image_id {image_id}: {error}") from error
        return {"pixel_values": pixels, "features": features, "digest": digest}

    def _pixels(self, content: _Content, view: "View | None" = None) -> torch.Tensor:
        image = _decode(content)
        if self.augmentation is not None and view is not None:
            image = self.augmentation(image, view)
        return resized(image, self.pixels) if hasattr(self.pixels, "resample") else self.pixels(image)


def resized(image: Image.Image, image_processor: "BaseImageProcessor") -> torch.Tensor:
    """Return an RGB image as uint8 (3, H, W), with size and resampling filter of an image processor."""
    size = image_processor.size
    return to_tensor(image.resize((size["width"], size["height"]), image_processor.resample))


def processed(image: Image.Image, image_processor: "BaseImageProcessor") -> torch.Tensor:
    """Return what an image processor makes of an RGB image: normalized (3, H, W)."""
    return image_processor(image, return_tensors="pt")["pixel_values"][0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def with_pixel_values(
    data: Data,
    pixels: "Callable[[Image.Image], torch.Tensor] | BaseImageProcessor",
    cached_features: Callable[[bytes], torch.Tensor | None] | None = None,
    augmentation: "Augmentation | None" = None,
) -> Data:
    """Return `data` with an `ImageTransform` of the same arguments: images are read when a row is read.

    Without the cast, `datasets` would decode them, opening the zip again for every image, with errors that do not name
    the image.
    """
    undecoded = data.cast_column("image", datasets.Image(decode=False))
    return undecoded.with_transform(ImageTransform(pixels, cached_features, augmentation))
