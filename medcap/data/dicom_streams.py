"""What a DICOM file unpacks to, checked before it is unpacked: a small file may claim a huge picture."""

from __future__ import annotations

import zlib
from typing import IO

DEFLATED = b"1.2.840.10008.1.2.1.99"  # PS3.5 section A.5: all after the meta information is one zlib stream
MOST_INFLATED = 2**30  # bytes
_META = b"\x02\x00\x00\x00UL\x04\x00"  # (0002,0000), the length of the meta information
_HEAD = 132 + len(_META) + 4
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # Huffman tables, reserved, arithmetic coding: among SOF0..SOF15 by number alone


def check_inflation(file: IO[bytes]) -> None:
    """Raise ValueError for a deflated file that unpacks to more than 1 GiB; `file` is left at its beginning."""
    head = file.read(_HEAD)
    meta = file.read(min(int.from_bytes(head[-4:], "little"), 2**16) if head[132:-4] == _META else 2**12)
    if DEFLATED in meta:
        if head[132:-4] != _META:
            raise ValueError("not a sound DICOM file: it is deflated, and does not say where")
        _inflate(file)
    file.seek(0)


def _inflate(file: IO[bytes]) -> None:
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while block := inflate.unconsumed_tail or file.read(2**16):
            size += len(inflate.decompress(block, 2**20))
            if size > MOST_INFLATED:
                raise ValueError(f"it unpacks to more than the {MOST_INFLATED:,} bytes that are read")
    except zlib.error:
        raise ValueError("not a sound DICOM file: it is deflated, and cannot be unpacked") from None


def check_stream(stream: bytes, rows: int, columns: int) -> None:
    """Raise ValueError for a compressed frame that is larger by itself than the file's tags say.

    JPEG 2000 by its SIZ marker (ISO/IEC 15444-1, A.5.1), JPEG and JPEG-LS by their frame header (ITU-T T.81, B.2.2).
    """
    size = _jpeg_2000_size(stream) or _jpeg_size(stream)
    if size is not None and (size[0] > rows or size[1] > columns or size[2] > 4):
        raise ValueError(
            f"its picture is compressed as {size[1]} x {size[0]} pixels of {size[2]} colours, and said to be "
            f"{columns} x {rows}"
        )


def _jpeg_2000_size(stream: bytes) -> tuple[int, int, int] | None:
    """Height, width, components."""
    start = stream.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(stream) < start + 42:
        return None
    width, height = (int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12))
    return height, width, int.from_bytes(stream[start + 40 : start + 42], "big")


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    place = 2
    while stream[:2] == b"\xff\xd8" and place + 10 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            height, width = (int.from_bytes(stream[place + at : place + at + 2], "big") for at in (5, 7))
            return height, width, stream[place + 9]
        place += 1 if marker == 0xFF else 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None
