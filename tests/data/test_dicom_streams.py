"""The size of compressed and deflated data is checked before decompression."""

import io
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import U8, compressed, dicom, encapsulated, file_of, read_error
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from medcap.data import dicom_streams
from medcap.data.images import read_image


def no_decoding(monkeypatch):
    for name in ("jpeg8", "jpegls", "jpeg2k"):
        monkeypatch.setattr(imagecodecs, f"{name}_decode", lambda *args, **kwargs: pytest.fail("decoded"))


def jpeg_2000():
    data = compressed(dicom(np.zeros((64, 64), U8)), JPEG2000Lossless)
    return data, b"\xff\x4f\xff\x51", 8


def jpeg_ls():
    data = compressed(dicom(np.zeros((64, 64), U8)), JPEGLSLossless)
    return data, b"\xff\xf7", 5


@pytest.mark.parametrize("make", [jpeg_2000, jpeg_ls])
def test_frame_larger_than_its_tags_is_not_decoded(tmp_path, make, monkeypatch):
    data, marker, offset = make()
    content = data.PixelData
    start = content.index(marker) + offset
    width = 4 if offset == 8 else 2
    data.PixelData = content[:start] + (30_000).to_bytes(width, "big") * 2 + content[start + 2 * width :]
    path = file_of(data, tmp_path / "a.dcm")
    no_decoding(monkeypatch)
    with pytest.raises(ValueError, match="compressed as 30000 x 30000 pixels of 1 channels .*, but .* 64 x 64"):
        read_image(path)


def test_deflated_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    small = dicom(np.arange(0, 256, dtype=U8).reshape(16, 16), DeflatedExplicitVRLittleEndian)
    path = file_of(small, tmp_path / "a.dcm")
    assert np.asarray(read_image(path).convert("L"))[0, 7] == 7
    bomb = file_of(dicom(np.zeros((2000, 2000), U8), DeflatedExplicitVRLittleEndian), tmp_path / "b.dcm")
    assert bomb.stat().st_size < 10_000
    monkeypatch.setattr(dicom_streams, "MAX_INFLATED", 1_000_000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **kwargs: pytest.fail("inflated"))
    with pytest.raises(ValueError, match="inflates to more than the 1,000,000 bytes"):
        read_image(bomb)


@pytest.mark.parametrize("trailer", [b"", b"\0", bytes(3)], ids=len)
def test_inflation_ends_at_the_end_of_the_deflated_data(trailer):
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    program = (
        "import io, sys; from medcap.data.dicom_streams import _inflate; _inflate(io.BytesIO(sys.stdin.buffer.read()))"
    )
    content = deflate.compress(bytes(2**21)) + deflate.flush() + trailer
    subprocess.run([sys.executable, "-c", program], input=content, timeout=20, check=True)


def jpeg(kind="JPEG", **options):
    Image.fromarray(np.zeros((64, 64), U8)).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def frame(stream, syntax, rows=64, columns=64):
    return encapsulated(dicom(np.zeros((rows, columns), U8)), syntax, stream)


SIZ = b"\xff\x4f\xff\x51"


def with_false_size(stream, marker=SIZ, offset=8, width=4):
    start = stream.index(marker) + offset
    return stream[:start] + (30_000).to_bytes(width, "big") * 2 + stream[start + 2 * width :]


def second_codestream():
    stream, plain = jpeg("JPEG2000", no_jp2=False), jpeg("JPEG2000", no_jp2=True)
    box = (len(plain) + 8).to_bytes(4, "big") + b"uuid" + plain
    start = stream.index(b"jp2c") - 4
    return stream[:start] + box + with_false_size(stream[start:])


def second_frame_header():
    stream = jpeg()
    start = stream.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
    return stream[:end] + with_false_size(stream[start:end], b"\xff\xc0", 5, 2) + stream[end:]


def wrong_offset_table():
    data = frame(jpeg("JPEG2000", no_jp2=True), JPEG2000Lossless)
    first = data.PixelData
    second = with_false_size(jpeg("JPEG2000", no_jp2=True))
    second += bytes(len(second) % 2)
    data.PixelData = first + b"\xfe\xff\x00\xe0" + len(second).to_bytes(4, "little") + second
    start = len(first) - 12  # from the end of the basic offset table
    data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = (n.to_bytes(8, "little") for n in (start, len(second)))
    return data


def tiles_of_one_pixel():
    sizes, tiles = ((64).to_bytes(4, "big") * 2 + bytes(8), (1).to_bytes(4, "big") * 2)
    stream = jpeg("JPEG2000", no_jp2=True)
    start = stream.index(SIZ) + 8
    big = (256).to_bytes(4, "big") + (255).to_bytes(4, "big") + bytes(8)
    assert stream[start : start + 16] == sizes
    return frame(stream[:start] + big + tiles + stream[start + 24 :], JPEG2000Lossless, 255, 256)


FALSE_SIZES = {
    "JP2": lambda: frame(with_false_size(jpeg("JPEG2000", no_jp2=False)), JPEG2000Lossless),
    "JP2 header": lambda: frame(with_false_size(jpeg("JPEG2000", no_jp2=False), b"ihdr", 4), JPEG2000Lossless),
    "second codestream in JP2": lambda: frame(second_codestream(), JPEG2000Lossless),
    "JPEG": lambda: frame(with_false_size(jpeg(), b"\xff\xc0", 5, 2), JPEGBaseline8Bit),
    "second frame header in JPEG": lambda: frame(second_frame_header(), JPEGBaseline8Bit),
    "JPEG after a stray byte": lambda: frame(
        with_false_size(jpeg(), b"\xff\xc0", 5, 2).replace(b"\xff\xdb", b"\0\xff\xdb", 1), JPEGBaseline8Bit
    ),
    "JPEG with unknown segment": lambda: frame(
        jpeg().replace(b"\xff\xdb", b"\xff\xf1\0\4\0\0\xff\xdb", 1), JPEGBaseline8Bit
    ),
    "JPEG 2000 after a stray byte": lambda: frame(b"\0" + jpeg("JPEG2000", no_jp2=True), JPEG2000Lossless),
    "wrong offset table": wrong_offset_table,
    "tiles of one pixel": tiles_of_one_pixel,
}


@pytest.mark.parametrize("make", FALSE_SIZES.values(), ids=FALSE_SIZES)
def test_frame_of_uncertain_size_is_not_decoded(tmp_path, make, monkeypatch):
    data = make()
    path = file_of(data, tmp_path / "a.dcm")
    no_decoding(monkeypatch)
    assert "cannot read image" in read_error(path)


@pytest.mark.parametrize("no_jp2", [True, False])
def test_jpeg_2000_is_read_as_codestream_and_as_jp2(tmp_path, no_jp2):
    path = file_of(frame(jpeg("JPEG2000", no_jp2=no_jp2), JPEG2000Lossless), tmp_path / "a.dcm")
    assert read_image(path).size == (64, 64)


@pytest.mark.parametrize("stated", [0, 20, None])
def test_deflated_data_are_found_with_wrong_header_length(tmp_path, stated, monkeypatch):
    path = file_of(dicom(np.zeros((2000, 2000), U8), DeflatedExplicitVRLittleEndian), tmp_path / "a.dcm")
    content = path.read_bytes()
    begin = 144 + int.from_bytes(content[140:144], "little")
    if stated is None:  # no length, and 8,000 bytes before the transfer syntax
        filler = b"\2\0\1\0OB\0\0" + (8000).to_bytes(4, "little") + bytes(8000)
        content = content[:132] + filler + content[144:]
    else:
        content = content[:140] + stated.to_bytes(4, "little") + content[144:]
    path.write_bytes(content)
    assert begin < len(content)
    monkeypatch.setattr(dicom_streams, "MAX_INFLATED", 1_000_000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **kwargs: pytest.fail("inflated"))
    with pytest.raises(ValueError, match="inflates to more than the 1,000,000 bytes"):
        read_image(path)


def test_missing_private_function_of_pydicom_raises(tmp_path, monkeypatch):
    path = file_of(dicom(U8([[0, 200]])), tmp_path / "a.dcm")
    monkeypatch.delattr(pydicom.filereader, "_read_file_meta_info")
    with pytest.raises(ValueError, match=r"pydicom \d.* has no filereader._read_file_meta_info, .*; install pyd"):
        read_image(path)
