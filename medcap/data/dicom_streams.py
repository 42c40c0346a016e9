"""Check the uncompressed size of a DICOM file before decompressing it: a small file may contain a huge image."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from medcap.data.dicom_tags import TagError, integer
from medcap.private_hooks import check_hooks

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_INFLATED = 2**30  # bytes
_SIZ = b"\xff\x4f\xff\x51"  # the start of a JPEG 2000 codestream, followed by its size
_JP2 = b"\0\0\0\x0cjP  "  # a codestream in a JP2 file, which PS3.5 A.4.4 forbids and some devices write
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # without Huffman tables, reserved, arithmetic coding
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}
_WITH_LENGTH = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE} | _FRAME_HEADERS
_IHDR = ((0, 4), (4, 4), (8, 2), (10, 1))  # offset and length of height, width, channels, bits
_SOF = ((4, 1), (5, 2), (7, 2), (9, 1))  # of bits, height, width, channels
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


class StreamHeader(NamedTuple):
    """What a compressed frame states about itself: its size, and where and how it does so."""

    height: int
    width: int
    channels: int
    bits: int
    marker: bytes = b""
    start: int = 0
    ids: bytes = b""  # of the channels, in JPEG


def check_stream(stream: bytes, dataset: Dataset) -> StreamHeader:
    """Return the header of a compressed frame.

    The size is in the SIZ marker of JPEG 2000 (ISO/IEC 15444-1, A.5.1), and in the frame header of JPEG and JPEG-LS
    (ITU-T T.81, B.2.2). Every size that a decoder might use is checked, not only the first.

    Raises:
        TagError: It states no size, or one that differs from the file's tags.
    """
    headers = [*_jpeg_2000_headers(stream), *_jpeg_headers(stream)]
    if not headers:
        raise TagError("its pixels cannot be decoded: the compressed data do not state their size")
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
    rows, columns, samples, allocated, stored = (integer(dataset, name) for name in names)
    for header in headers:
        # 8 bits may be allocated as 16
        is_wide = _container(header.bits) in (allocated, _container(stored))
        if header[:3] != (rows, columns, samples) or not is_wide:
            raise TagError(
                f"its image is compressed as {header.width} x {header.height} pixels of {header.channels} channels "
                f"and {header.bits} bits, but its tags state {columns} x {rows}, SamplesPerPixel {samples} and "
                f"BitsAllocated {allocated} (BitsStored {stored})"
            )
    return headers[-1]


def _container(bits: int) -> int:
    return next((size for size in (8, 16, 32) if bits <= size), 64)


def has_color_transform(stream: bytes) -> bool:
    """Return whether the coding style of a JPEG 2000 stream has a multiple component transform (COD, A.6.1)."""
    position = stream.find(_SIZ) + 2
    while (marker := stream[position : position + 2]) not in (b"\xff\x90", b""):  # the first tile, or the end
        if marker == b"\xff\x52":
            return stream[position + 8 : position + 9] == b"\1"
        position += 2 + max(2, _number(stream, position + 2, 2))
    return False


def _jpeg_2000_headers(stream: bytes) -> Iterator[StreamHeader]:
    """Yield the header of each codestream and, in a JP2 file, its own."""
    if not stream.startswith(_JP2):
        if stream.startswith(_SIZ):
            yield _codestream_header(stream, 0)
        return
    if b"pclr" in stream:  # expands one channel to up to 255; DICOM has its own palettes
        raise TagError("its pixels cannot be decoded: a JP2 file with a palette")
    for match in re.finditer(b"ihdr", stream):
        height, width, channels, bits = (_number(stream, match.end() + at, size) for at, size in _IHDR)
        yield StreamHeader(height, width, channels, (bits & 0x7F) + 1)
    for match in re.finditer(_SIZ, stream):
        yield _codestream_header(stream, match.start())


def _codestream_header(stream: bytes, start: int) -> StreamHeader:
    """Return the header of a codestream. Raises TagError for so many tiles that they would exhaust memory."""
    ends, offsets, tile, tile_offsets = (
        [_number(stream, start + offset + axis, 4) for axis in (0, 4)] for offset in (8, 16, 24, 32)
    )
    width, height = ends[0] - offsets[0], ends[1] - offsets[1]
    columns, rows = (-(-(ends[axis] - tile_offsets[axis]) // (tile[axis] or 1)) for axis in (0, 1))
    tiles = columns * rows
    if tiles > max(_MIN_TILES, width * height // _TILE_PIXELS):
        raise TagError(f"its pixels cannot be decoded: {tiles:,} tiles for {width} x {height} pixels")
    bits = (_number(stream, start + 42, 1) & 0x7F) + 1
    return StreamHeader(height, width, _number(stream, start + 40, 2), bits, _SIZ, start)


def _jpeg_headers(stream: bytes) -> Iterator[StreamHeader]:
    """Yield every frame header before the first scan.

    Bytes between segments are skipped, as decoders do. Raises TagError for an unknown segment.
    """
    position = 2 if stream.startswith(b"\xff\xd8") else len(stream)
    while 0 <= (position := stream.find(b"\xff", position)) < len(stream) - 1:
        marker = stream[position + 1]
        if marker == 0xDA:
            return
        if marker in _FRAME_HEADERS:
            bits, height, width, channels = (_number(stream, position + at, size) for at, size in _SOF)
            ids = stream[position + 10 : position + 10 + 3 * channels : 3]
            yield StreamHeader(height, width, channels, bits, stream[position : position + 2], position, ids)
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
    raise TagError("its pixels cannot be decoded: unknown segment in the compressed data")


def _number(stream: bytes, position: int, width: int) -> int:
    return int.from_bytes(stream[position : position + width], "big")
