"""Check the uncompressed size of a DICOM file before decompressing it: a small file may claim a huge image."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, BinaryIO

INSTALL = "pip install 'medcap[dicom]'"
MAX_INFLATED = 2**30  # bytes
_SIZ = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream begins so, and its size follows
_JP2 = b"\0\0\0\x0cjP  "  # a codestream in a JP2 file, which PS3.5 A.4.4 forbids and some devices write
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # without Huffman tables, reserved, arithmetic coding
_LENGTHLESS = {0x00, 0x01, *range(0xD0, 0xDA)}
_SKIPPED = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
_FEW_TILES, _TILE_PIXELS = 4096, 1024  # a decoder takes some 10 KB for each tile


def check_inflation(file: BinaryIO) -> None:
    """Raise ValueError for a deflated file that unpacks to more than 1 GiB; `file` is left at its beginning.

    pydicom's own steps find where the data begin: it believes no length of the meta information, and whoever reads
    that otherwise than pydicom lets a file through that pydicom unpacks.
    """
    from pydicom import filereader
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    steps = _private_steps(filereader)
    try:
        filereader.read_preamble(file, force=True)
        syntax = steps[0](file).get("TransferSyntaxUID")
        steps[1](file)
    except Exception:  # then it raises again, and first, when the file is read
        syntax = None
    if syntax == DeflatedExplicitVRLittleEndian:
        _inflate(file)
    file.seek(0)


def _private_steps(filereader: ModuleType) -> list[Callable[[BinaryIO], Any]]:
    """Return pydicom's two private functions that read up to the deflated data.

    November 2026, pydicom 3.0: remove when a public function returns the position or bounds the inflated size.
    """
    names = ("_read_file_meta_info", "_read_command_set_elements")
    if missing := [name for name in names if not hasattr(filereader, name)]:
        version = metadata.version("pydicom")
        raise ValueError(f"pydicom {version} has no filereader.{missing[0]}; install pydicom 3.0: {INSTALL}")
    return [getattr(filereader, name) for name in names]


def _inflate(file: BinaryIO) -> None:
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while block := inflate.unconsumed_tail or file.read(2**16):
            size += len(inflate.decompress(block, 2**20))
            if size > MAX_INFLATED:
                raise ValueError(f"it unpacks to more than the {MAX_INFLATED:,} bytes that are read")
    except zlib.error:
        raise ValueError("not a sound DICOM file: it is deflated, and cannot be unpacked") from None


def check_stream(stream: bytes, rows: int, columns: int) -> None:
    """Raise ValueError for a compressed frame that is larger by itself than the file's tags say, or says no size.

    JPEG 2000 by its SIZ marker (ISO/IEC 15444-1, A.5.1), JPEG and JPEG-LS by their frame header (ITU-T T.81, B.2.2).
    Every size that a decoder might go by counts: a first one can be a decoy.
    """
    sizes = [*_jpeg_2000_sizes(stream), *_jpeg_sizes(stream)]
    if not sizes:
        raise ValueError("its pixels cannot be decoded: the compressed data do not say their size")
    for height, width, colours in sizes:
        if height > rows or width > columns or colours > 4:
            raise ValueError(
                f"its image is compressed as {width} x {height} pixels of {colours} colours, but its tags state "
                f"{columns} x {rows}"
            )


def _jpeg_2000_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Give height, width, components; in a JP2 file those of every codestream, and of the file's own header."""
    if stream.startswith(_JP2):
        if b"pclr" in stream:  # 255 colours out of one, where DICOM has its own palettes
            raise ValueError("its pixels cannot be decoded: a JP2 file with a palette")
        for found in re.finditer(b"ihdr", stream):
            yield _number(stream, found.end(), 4), _number(stream, found.end() + 4, 4), 1
    elif not stream.startswith(_SIZ):
        return
    for found in re.finditer(_SIZ, stream):
        if found.start() and not stream.startswith(_JP2):
            return  # image data
        yield _siz(stream, found.start())


def _siz(stream: bytes, start: int) -> tuple[int, int, int]:
    """Return height, width, components. ValueError for so many tiles that they alone would fill the memory."""
    width, height = (_number(stream, start + at, 4) for at in (8, 12))
    across, down = (_number(stream, start + at, 4) or 1 for at in (24, 28))
    tiles = -(-width // across) * -(-height // down)
    if tiles > max(_FEW_TILES, width * height // _TILE_PIXELS):
        raise ValueError(f"its pixels cannot be decoded: {tiles:,} tiles for {width} x {height} pixels")
    return height, width, _number(stream, start + 40, 2)


def _jpeg_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Give height, width, components of every frame header before the first scan; ValueError for an unknown segment.

    What stands between segments is skipped, as by the decoders.
    """
    place = 2 if stream.startswith(b"\xff\xd8") else len(stream)
    while 0 <= (place := stream.find(b"\xff", place)) < len(stream) - 1:
        marker = stream[place + 1]
        if marker == 0xDA:
            return
        if marker in _FRAMES:
            yield _number(stream, place + 5, 2), _number(stream, place + 7, 2), _number(stream, place + 9, 1)
        place += _step(stream, place, marker)


def _step(stream: bytes, place: int, marker: int) -> int:
    """Return how far the next marker is to be looked for."""
    if marker == 0xFF:
        return 1
    # Pillow looks into the segments of JPEG-LS, for which it has no name
    if marker in _LENGTHLESS or marker == 0xF7 or (marker == 0xF8 and stream[place + 4 : place + 5] != b"\4"):
        return 2
    if marker in _SKIPPED or marker in _FRAMES:
        return 2 + max(2, _number(stream, place + 2, 2))
    # 0xF8 of kind 4 is a size beyond 65535, which DICOM has not
    raise ValueError("its pixels cannot be decoded: the compressed data hold a segment of no known kind")


def _number(stream: bytes, place: int, width: int) -> int:
    return int.from_bytes(stream[place : place + width], "big")
