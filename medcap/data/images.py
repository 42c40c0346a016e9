"""Images: whatever a column or a folder holds, decoded to 8-bit RGB, and turned into `pixel_values` on the fly."""

import functools
import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from medcap.data.dicom import is_dicom, register_dicom

if TYPE_CHECKING:  # transformers takes seconds to import, and nothing but the two names below needs it
    from transformers.image_processing_utils import BaseImageProcessor

DIGEST_BYTES = 16  # of what tells an image file from another
MAX_FILE_BYTES = 2**30  # of one image in a zip; a DICOM series in one file has some hundred MB
Data = TypeVar("Data", datasets.Dataset, datasets.DatasetDict)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the file name extensions that Pillow reads, lower case with the dot: .jpg, .png, .tif, .dcm, ..."""
    register_dicom()
    formats = Image.registered_extensions()
    return frozenset(extension for extension, name in formats.items() if name in Image.OPEN)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named as an image, or has no extension and begins as a DICOM file does (IM000001)."""
    extension = os.path.splitext(path)[1].lower()
    return extension in image_extensions() or (not extension and os.path.isfile(path) and is_dicom(path))


def index_images(place: str | os.PathLike[str]) -> dict[str, str]:
    """Return {name without folder and extension: absolute path, or zip:// URL} of the images in a folder or a zip.

    One directory listing or table of contents is read, and no image. The folders inside a zip do not matter; those
    inside a folder are not searched. Raises ValueError for two images of one name and for a zip that is cut short.
    """
    place = os.path.abspath(place)
    if os.path.isdir(place):
        paths = [os.path.join(place, name) for name in os.listdir(place)]
    else:
        paths = [f"zip://{member}::{place}" for member in _members(place)]
    images: dict[str, str] = {}
    for path in paths:
        member = path.removesuffix(f"::{place}")
        if not is_image(member):
            continue
        name = os.path.splitext(os.path.basename(member))[0]
        if name in images:
            raise ValueError(f"two images are called {name}: {images[name]} and {path}")
        images[name] = path
    return images


def _members(archive: str) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return file.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: {error}; was the download cut short?") from error


def load_image(entry: Image.Image | Mapping[str, Any] | bytes | str | os.PathLike[str]) -> Image.Image:
    """Return the RGB image of whatever an image column holds.

    `entry` is a PIL image, the bytes of a file, a path as for `read_image`, or the `{"bytes": ..., "path": ...}` of a
    column cast to `datasets.Image(decode=False)`. Raises ValueError as `read_image`.
    """
    if isinstance(entry, Image.Image):
        return to_rgb(entry)
    if isinstance(entry, bytes):
        return decode_image(entry)
    if not isinstance(entry, Mapping):
        return read_image(entry)
    data, path = entry.get("bytes"), entry.get("path")
    if data is None and path:
        return read_image(path)
    return decode_image(data or b"", name=path or "bytes")


def read_image(path: str | os.PathLike[str], frame: int | None = None) -> Image.Image:
    """Return the RGB image in a file, or in a zip that is left packed: `zip://member::/path/archive.zip`.

    The URL is the one that `datasets` and fsspec write. They open the archive and read its table of contents for
    every image; here a process opens it once. The content decides the format, not the name: PNG bytes in a .jpg are
    read. `frame` (from 0) chooses one of several; None: the middle one of a DICOM file (see
    `medcap.data.dicom.DicomImageFile` for what is done to its values), and the first of any other.

    Raises ValueError, one line with path and cause, for a file that is absent, truncated, no image, or larger than
    `PIL.Image.MAX_IMAGE_PIXELS`, and for a frame that is not there.
    """
    name = os.fspath(path)
    with _errors_named(name):
        return _rgb(_open(_read_bytes(name), name, frame))


def decode_image(data: bytes, name: str = "bytes") -> Image.Image:
    """Return the RGB image in the bytes of an image file; `name` stands for them in the ValueError."""
    with _errors_named(name):
        return _rgb(_open(data, name))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any PIL image as 8-bit RGB, upright, on white; the first frame where there are several.

    In this order: the EXIF orientation is applied (captions say left and right; nothing else turns or flips an
    image). Grey of more than 8 bits (I;16, I, F) is rescaled, where `convert("RGB")` would clip 40000 to 255.
    Transparency is laid on white, because the images are figures and white is the page on which those who described
    them saw them; what lies hidden under transparent pixels does not show. Raises ValueError as `read_image`.
    """
    with _errors_named(getattr(image, "filename", "") or "in memory"):
        return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _rescaled(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _rescaled(image: Image.Image) -> Image.Image:
    """Return an L image in which the least and the greatest finite value are 0 and 255; a flat one is black."""
    values = np.asarray(image).astype(np.float64)  # (H, W)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _open(data: bytes, name: str, frame: int | None = None) -> Image.Image:
    """Return the opened image; a decompression bomb of which Pillow only warns is an error here."""
    register_dicom()
    file = io.BytesIO(data)
    file.name = name  # tells a DICOM file that lacks its preamble
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(file)
        if frame is not None:
            _seek(image, frame)
        image.load()  # now, because some formats (ICO, GIF) tell their true size only here
    return image


def _seek(image: Image.Image, frame: int) -> None:
    frames = getattr(image, "n_frames", 1)
    if not 0 <= frame < frames:
        raise ValueError(f"there is no frame {frame}: it has {frames}, counted from 0")
    image.seek(frame)


def _read_bytes(path: str) -> bytes:
    if path.startswith("zip://"):
        member, _, archive = path.removeprefix("zip://").rpartition("::")
        opened = _zip_of_process(archive, os.getpid(), os.stat(archive).st_mtime_ns)
        if (size := opened.getinfo(member).file_size) > MAX_FILE_BYTES:  # a zip of a few KB can hold many GB of zeros
            raise ValueError(f"{size:,} bytes when unpacked; at most {MAX_FILE_BYTES:,} are read")
        return opened.read(member)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")  # a pipe would be waited for, for ever
    with open(path, "rb") as file:
        return file.read()


@functools.lru_cache(maxsize=8)
def _zip_of_process(archive: str, pid: int, changed: int) -> zipfile.ZipFile:
    """Return the archive as opened by process `pid`: forked workers that share a handle move each other's position.

    `changed` is its time of change: an archive that was replaced is opened again.
    """
    return zipfile.ZipFile(archive)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into ValueError `cannot read image NAME: cause`."""
    try:
        yield
    # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, IndexError, ...; zipfile adds its own
    except Exception as error:
        raise ValueError(f"cannot read image {name}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow knows"  # Pillow's own words hold a memory address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split()) or type(error).__name__


def image_digest(entry: Any) -> bytes:
    """Return 16 bytes that identify the content of an entry of an image column (see `load_image`).

    Files are identified by their bytes, not by name or time. Raises ValueError for a file that cannot be read.
    """
    return _digest(_read_entry(entry))


def _read_entry(entry: Any) -> tuple[bytes, str] | Image.Image:
    """Return the bytes of an image file and its name, read once; a PIL image as it is."""
    if isinstance(entry, Image.Image):
        return entry
    data = entry if isinstance(entry, bytes) else entry.get("bytes") if isinstance(entry, Mapping) else None
    path = entry.get("path") if isinstance(entry, Mapping) else None if isinstance(entry, bytes) else os.fspath(entry)
    if data is None and path:
        with _errors_named(path):
            data = _read_bytes(path)
    return data or b"", path or "bytes"


def _digest(content: tuple[bytes, str] | Image.Image) -> bytes:
    if isinstance(content, Image.Image):
        data = repr((content.mode, content.size)).encode() + content.tobytes()
    else:
        data = content[0]
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class ImageTransform:
    """Replace the column "image" by what the model takes; `with_pixel_values` sets it as a data set's transform.

    `pixel_values` are the bytes of the resized image: `medcap.modeling.blip_fast` rescales and normalizes them once,
    on its device. Images are not flipped, because captions state left and right.

    Args:
        image_processor: BLIP's; its size and resampling filter are used.
        cached_features: Returns the features of an image by its digest, or None.
    """

    image_processor: "BaseImageProcessor"
    cached_features: Callable[[bytes], torch.Tensor | None] | None = None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return `batch` with "pixel_values" (uint8 tensors (3, H, W)) instead of "image".

        With `cached_features` also "digest" (bytes) and "features" ((1 + patches, width) or None); an image with
        features is not decoded, and its "pixel_values" is None. A file is read once. Raises ValueError with image_id
        and path for an image that cannot be decoded.
        """
        columns = {name: column for name, column in batch.items() if name != "image"}
        if "image" not in batch:  # dataset["caption"] reads one column
            return columns
        ids = batch.get("image_id", range(len(batch["image"])))
        rows = [_named(self._row, entry, image_id) for entry, image_id in zip(batch["image"], ids, strict=True)]
        return {**columns, **{name: [row[name] for row in rows] for name in (rows[0] if rows else ())}}

    def _row(self, entry: Any) -> dict[str, Any]:
        if self.cached_features is None:
            return {"pixel_values": self._pixels(load_image(entry))}
        content = _read_entry(entry)
        digest = _digest(content)
        features = self.cached_features(digest)
        pixels = None if features is not None else self._pixels(_decoded(content))
        return {"pixel_values": pixels, "features": features, "digest": digest}

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        size = self.image_processor.size
        image = image.resize((size["width"], size["height"]), self.image_processor.resample)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _decoded(content: tuple[bytes, str] | Image.Image) -> Image.Image:
    return to_rgb(content) if isinstance(content, Image.Image) else decode_image(*content)


def _named(read: Callable[[Any], Any], entry: Any, image_id: Any) -> Any:
    try:
        return read(entry)
    except ValueError as error:
        raise ValueError(f"image_id {image_id}: {error}") from error


def with_pixel_values(
    data: Data,
    image_processor: "BaseImageProcessor",
    cached_features: Callable[[bytes], torch.Tensor | None] | None = None,
) -> Data:
    """Return `data` with an `ImageTransform`: images are read and decoded when a row is read.

    The cast prevents `datasets` from decoding first: it would open the zip again for every image, and its errors do
    not name the image.
    """
    undecoded = data.cast_column("image", datasets.Image(decode=False))
    return undecoded.with_transform(ImageTransform(image_processor, cached_features))
