"""Caption image files and folders; a file that cannot be captioned costs no other caption."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from medcap.data.dicom import NoImageError
from medcap.data.dicom_windows import Window
from medcap.data.images import is_image, read_image
from medcap.inference import Captioner, default_batch_size
from medcap.logs import error_line

logger = logging.getLogger(__name__)


def caption_files(
    captioner: Captioner,
    files: Sequence[Path],
    *,
    batch_size: int | None = None,
    frame: int | None = None,
    windows: tuple[Window, ...] = (),
) -> Iterator[dict[str, str]]:
    """Yield {"image": path, "caption": text} for each file, or {"image": path, "error": cause}, in order.

    `frame` and `windows` are as in `read_image`. A DICOM file that is no image, such as a report, is skipped with a
    warning. A batch that fails, for example for lack of memory, is captioned in halves, so that one image costs no
    other caption.
    """
    size = batch_size or default_batch_size(captioner)
    with tqdm(total=len(files), desc="captions", unit="image", disable=len(files) < 2) as bar:
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            contents = [_read(file, frame, windows) for file in batch]
            captions = iter(_captions(captioner, [image for image in contents if isinstance(image, Image.Image)]))
            for file, content in zip(batch, contents, strict=True):
                result = next(captions) if isinstance(content, Image.Image) else content
                if isinstance(result, str):
                    yield {"image": str(file), "caption": result}
                elif isinstance(result.__cause__, NoImageError):
                    logger.warning("%s. Skipped", result)
                else:
                    yield {"image": str(file), "error": error_line(result)}
            bar.update(len(batch))


def _read(file: Path, frame: int | None, windows: tuple[Window, ...]) -> Image.Image | Exception:
    try:
        return read_image(file, frame, windows)
    except ValueError as error:
        return error


def _captions(captioner: Captioner, images: Sequence[Image.Image]) -> list[str | Exception]:
    """Return the caption of each image, or its error."""
    if not images:
        return []
    try:
        return list(captioner.caption(images))
    except Exception as error:
        if len(images) == 1:
            return [error]
    middle = len(images) // 2
    return [*_captions(captioner, images[:middle]), *_captions(captioner, images[middle:])]


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return image files, and for folders the images in them and in their subfolders, sorted by name.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A folder has no image.
    """
    return [file for path in paths for file in (_files(path) if path.is_dir() else [_existing(path)])]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image or folder")
    return path


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if is_image(file))
    if not files:
        raise ValueError(f"{folder}: no image in this folder")
    return files
