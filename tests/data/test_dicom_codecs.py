"""Compressed frames have the components and bits of the tags, and the colors that their stream states."""

import imagecodecs
import numpy as np
import pytest
from dicom_files import U8, U16, compressed, dicom, encapsulated, file_of, lossless_jpeg_2000
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medcap.data.images import read_image

LEVELS = np.tile(np.linspace(0, 255, 64).round().astype(U8), (48, 1))
COLORS = np.stack([LEVELS, LEVELS // 2, 255 - LEVELS], -1)
lossless_jpeg, jpeg_ls = imagecodecs.jpeg8_encode, imagecodecs.jpegls_encode


def jpeg(pixels, space="YCBCR"):
    return imagecodecs.jpeg8_encode(pixels, 99, outcolorspace=space if pixels.ndim == 3 else None, subsampling="444")


def without_markers(stream):
    """Without JFIF, Adobe and named components: only the tags know the color space."""
    for marker in (b"\xff\xe0", b"\xff\xee"):
        if (start := stream.find(marker)) > 0:
            stream = stream[:start] + stream[start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big") :]
    frame, scan = b"\3R\x11\0G\x11\0B\x11\0", b"\3R\0G\0B\0"
    named = bytes.maketrans(b"RGB", b"\4\5\6")
    return stream.replace(frame, frame.translate(named)).replace(scan, scan.translate(named))


def wide():
    data = dicom(LEVELS.astype(np.uint32))
    return encapsulated(data, JPEGBaseline8Bit, jpeg(LEVELS))


DISAGREE = {
    "JPEG 2000 of 3 components in grayscale": lambda: encapsulated(
        dicom(LEVELS), JPEG2000Lossless, lossless_jpeg_2000(COLORS)
    ),
    "JPEG 2000 of 1 component in RGB": lambda: encapsulated(
        dicom(COLORS), JPEG2000Lossless, lossless_jpeg_2000(LEVELS)
    ),
    "JPEG-LS of 3 components in grayscale": lambda: encapsulated(dicom(LEVELS), JPEGLSLossless, jpeg_ls(COLORS)),
    "JPEG of 3 components in grayscale": lambda: encapsulated(dicom(LEVELS), JPEGBaseline8Bit, jpeg(COLORS)),
    "JPEG of 8 bits in 32": wide,
    "JPEG-LS of 16 bits in 8": lambda: encapsulated(dicom(LEVELS), JPEGLSLossless, jpeg_ls(LEVELS.astype(U16) * 256)),
    "JPEG-LS of 8 bits for 12": lambda: encapsulated(
        dicom(LEVELS.astype(U16), BitsStored=12, HighBit=11), JPEGLSLossless, jpeg_ls(LEVELS)
    ),
}


@pytest.mark.parametrize("make", DISAGREE.values(), ids=DISAGREE)
def test_stream_that_contradicts_the_tags_is_not_decoded(tmp_path, make, monkeypatch):
    path = file_of(make(), tmp_path / "a.dcm")
    for name in ("jpeg8", "jpegls", "jpeg2k"):
        monkeypatch.setattr(imagecodecs, f"{name}_decode", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises(
        ValueError, match=r"of \d channels and \d+ bits, but its tags state .*SamplesPerPixel \d and B"
    ):
        read_image(path)


def test_rle_segments_that_contradict_the_tags_are_named(tmp_path):
    data = compressed(dicom(LEVELS.astype(U16)), RLELossless)
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    with pytest.raises(ValueError, match="2 RLE segments, but its tags state SamplesPerPixel 1 and BitsAllocated 8"):
        read_image(file_of(data, tmp_path / "a.dcm"))


READ = {  # stream, transfer syntax, PhotometricInterpretation
    "JPEG 2000 with a transform, said to be YBR_FULL": (lossless_jpeg_2000(COLORS), JPEG2000Lossless, "YBR_FULL"),
    "JPEG 2000 without a transform": (lossless_jpeg_2000(COLORS, mct=False), JPEG2000Lossless, "RGB"),
    "JPEG-LS": (jpeg_ls(COLORS), JPEGLSLossless, "RGB"),
    "lossless JPEG": (lossless_jpeg(COLORS, lossless=True, colorspace="RGB"), JPEGLosslessSV1, "RGB"),
    "JPEG with JFIF, said to be RGB": (jpeg(COLORS), JPEGBaseline8Bit, "RGB"),
    "JPEG in YBR": (without_markers(jpeg(COLORS)), JPEGBaseline8Bit, "YBR_FULL"),
    "JPEG in RGB": (without_markers(jpeg(COLORS, "RGB")), JPEGBaseline8Bit, "RGB"),
    "JPEG in RGB, said to be YBR_FULL_422": (jpeg(COLORS, "RGB"), JPEGBaseline8Bit, "YBR_FULL_422"),
}


@pytest.mark.parametrize(("stream", "syntax", "kind"), READ.values(), ids=READ)
def test_colors_are_those_of_the_stream(tmp_path, stream, syntax, kind):
    data = encapsulated(dicom(COLORS, PhotometricInterpretation=kind), syntax, stream)
    image = read_image(file_of(data, tmp_path / "a.dcm"))
    assert np.abs(np.asarray(image).astype(int) - COLORS).max() <= 3


@pytest.mark.parametrize(
    ("encode", "syntax"),
    [
        (lambda pixels: imagecodecs.jpeg8_encode(pixels, 100, bitspersample=12), JPEGExtended12Bit),
        (lambda pixels: lossless_jpeg(pixels, lossless=True, bitspersample=16), JPEGLosslessSV1),
    ],
    ids=["12-bit JPEG", "lossless JPEG"],
)
def test_gray_values_of_more_than_8_bits_are_read(tmp_path, encode, syntax):
    stored = LEVELS.astype(U16) * 16
    data = encapsulated(dicom(stored, BitsStored=12, HighBit=11), syntax, encode(stored))
    assert np.abs(np.asarray(read_image(file_of(data, tmp_path / "a.dcm")))[..., 0].astype(int) - LEVELS).max() <= 1


HIGH_THROUGHPUT = bytes.fromhex(  # a ramp of 16 x 4 pixels from 0 to 4080; old imagecodecs cannot write it
    "ff4fff5100294000000000100000000400000000000000000000001000000004000000000000000000010f0101ff50000800020000000aff52"
    "000c00020001000504044001ff5c00132088909090909090909090909090888888ff90000a0000000000410001ff93c0002649f60507740000"
    "c00013006af303877400c0001300b0f900c13400c0001300c6fc80a13400c00027001e3cfce2027400ffd9"
)


def test_high_throughput_jpeg_2000_is_read(tmp_path):
    data = dicom(np.zeros((4, 16), U16), BitsStored=12, HighBit=11)
    path = file_of(encapsulated(data, HTJ2KLossless, HIGH_THROUGHPUT), tmp_path / "a.dcm")
    assert np.asarray(read_image(path))[3, ::5, 0].tolist() == [0, 85, 170, 255]
