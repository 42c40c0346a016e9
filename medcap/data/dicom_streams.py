"""Check the uncompressed size of a DICOM file before decompressing it: a small file may contain a huge image."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medcap.private_hooks import check_hooks

INSTALL = "pip install 'medcap[dicom]'"
MAX_INFLATED = 2**30  # bytes
_SIZ = b"\xff\x4f\xff\x51"  # the start of a JPEG 2000 codestream, followed by its size
_JP2 = b"\0\0\0\x0cjP  "  # a codestream in a JP2 file, which PS3.5 A.4.4 forbids and some devices write
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # without Huffman tables, reserved, arithmetic coding
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}
_WITH_LENGTH = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE} | _FRAME_HEADERS
_MIN_TILES, _TILE_PIXELS = 4096, 1024  # a decoder needs about 10 KB per tile


def check_inflation(file: BinaryIO) -> None:
    """Raise ValueError for a deflated file that inflates to more than 1 GiB; `file` is at its start afterwards.

    The start of the data is found with pydicom's own functions: pydicom ignores the stated length of the meta
    information, and any other parser could miss a file that pydicom inflates.
    """
    check_hooks("pydicom")
    from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        read_preamble(file, force=True)
        syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
        _read_command_set_elements(file)
    except Exception:  # reading the file raises it again
        syntax = None
    if syntax == DeflatedExplicitVRLittleEndian:
        _inflate(file)
    file.seek(0)


def _inflate(file: BinaryIO) -> None:
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not inflate.eof and (block := inflate.unconsumed_tail or file.read(2**16)):  # a pad byte may follow
            size += len(inflate.decompress(block, 2**20))
            if size > MAX_INFLATED:
                raise ValueError(f"it inflates to more than the {MAX_INFLATED:,} bytes allowed")
    except zlib.error:
        raise ValueError("invalid DICOM file: it is deflated and cannot be inflated") from None


def check_stream(stream: bytes, rows: int, columns: int) -> None:
    """Raise ValueError for a compressed frame without a size, or larger than the file's tags state.

    The size is in the SIZ marker of JPEG 2000 (ISO/IEC 15444-1, A.5.1), and in the frame header of JPEG and JPEG-LS
    (ITU-T T.81, B.2.2). Every size that a decoder might use is checked, not only the first.
    """
    sizes = [*_jpeg_2000_sizes(stream), *_jpeg_sizes(stream)]
    if not sizes:
        raise ValueError("its pixels cannot be decoded: the compressed data do not state their size")
    for height, width, channels in sizes:
        if height > rows or width > columns or channels > 4:
            raise ValueError(
                f"its image is compressed as {width} x {height} pixels of {channels} channels, but its tags state "
                f"{columns} x {rows}"
            )


def _jpeg_2000_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (height, width, channels) of each codestream and, in a JP2 file, of its header."""
    if not stream.startswith(_JP2):
        if stream.startswith(_SIZ):
            yield _codestream_size(stream, 0)
        return
    if b"pclr" in stream:  # expands one channel to up to 255; DICOM has its own palettes
        raise ValueError("its pixels cannot be decoded: a JP2 file with a palette")
    for match in re.finditer(b"ihdr", stream):
        yield _number(stream, match.end(), 4), _number(stream, match.end() + 4, 4), 1
    for match in re.finditer(_SIZ, stream):
        yield _codestream_size(stream, match.start())


def _codestream_size(stream: bytes, start: int) -> tuple[int, int, int]:
    """Return (height, width, channels). Raises ValueError for so many tiles that they would exhaust memory."""
    width, height = (_number(stream, start + offset, 4) for offset in (8, 12))
    tile_width, tile_height = (_number(stream, start + offset, 4) or 1 for offset in (24, 28))
    tiles = -(-width // tile_width) * -(-height // tile_height)
    if tiles > max(_MIN_TILES, width * height // _TILE_PIXELS):
        raise ValueError(f"its pixels cannot be decoded: {tiles:,} tiles for {width} x {height} pixels")
    return height, width, _number(stream, start + 40, 2)


def _jpeg_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (height, width, channels) of every frame header before the first scan.

    Bytes between segments are skipped, as decoders do. Raises ValueError for an unknown segment.
    """
    position = 2 if stream.startswith(b"\xff\xd8") else len(stream)
    while 0 <= (position := stream.find(b"\xff", position)) < len(stream) - 1:
        marker = stream[position + 1]
        if marker == 0xDA:
            return
        if marker in _FRAME_HEADERS:
            yield _number(stream, position + 5, 2), _number(stream, position + 7, 2), _number(stream, position + 9, 1)
        position += _segment_length(stream, position, marker)


def _segment_length(stream: bytes, position: int, marker: int) -> int:
    if marker == 0xFF:
        return 1
    # 0xF7, 0xF8: Pillow does not know the segments of JPEG-LS and searches for markers inside them
    is_jpeg_ls = marker == 0xF7 or (marker == 0xF8 and stream[position + 4 : position + 5] != b"\4")
    if marker in _WITHOUT_LENGTH or is_jpeg_ls:
        return 2
    if marker in _WITH_LENGTH:
        return 2 + max(2, _number(stream, position + 2, 2))
    # 0xF8 of type 4 is a size above 65535, which DICOM does not have
    raise ValueError("its pixels cannot be decoded: unknown segment in the compressed data")


def _number(stream: bytes, position: int, width: int) -> int:
    return int.from_bytes(stream[position : position + width], "big")
