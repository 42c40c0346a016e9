"""Samples of every type, depth and photometric interpretation are read as their author saw them, or refused."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from medcap.data.images import load_image, to_rgb
from medcap.data.raster import decode_rgb

RAMP = np.tile(np.linspace(0, 1, 64), (48, 1))  # (H, W), black left, white right
ROWS = np.arange(48)[:, None]
GREY = [0, 65, 130, 194, 255]
COLUMNS = [0, 16, 32, 48, 63]
WHITE = 255


def ramp(kind, low, high):
    values = low + RAMP * (float(high) - float(low))
    return (values if np.dtype(kind).kind == "f" else np.rint(values)).astype(kind)


def stacked(*channels):
    return np.stack(channels, -1)


def tiff(samples, photometric="minisblack", **options):
    tifffile.imwrite(file := io.BytesIO(), samples, photometric=photometric, **options)
    return file.getvalue()


def png(samples, key=None):
    data = imagecodecs.png_encode(samples)
    if key is None:
        return data
    chunk = b"tRNS" + struct.pack(f">{len(key)}H", *key)  # behind the 33 bytes of signature and IHDR
    return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def printed(data):
    return np.asarray(load_image(data))[24, COLUMNS].tolist()


DEEP, OPAQUE = ramp("u2", 0, 60_000), np.full((48, 64), 65_535, "u2")
TWELVE = ramp("u2", 0, 4095)
TWELVE_RGB = stacked(TWELVE, TWELVE, TWELVE)
TYPES = [("i1", -128, 127), ("u2", 0, 60_000), ("i2", -1000, 3000), ("i2", -32_768, 32_767), ("u4", 0, 2**32 - 1),
         ("u4", 5, 90_000), ("i4", -(2**31), 2**31 - 1), ("u8", 0, 2**63), ("i8", -(2**40), 2**40), ("f2", 0, 1),
         ("f4", -1000, 3000), ("f8", 0, 1e300)]  # fmt: skip


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize(("kind", "low", "high"), TYPES)
def test_tiff_of_any_sample_type_is_a_ramp(kind, low, high, compression):
    samples = ramp(kind, low, high)
    for order in "<>":
        dark = printed(tiff(samples, compression=compression, byteorder=order))
        light = printed(tiff(samples, "miniswhite", compression=compression, byteorder=order))
        assert dark == [pytest.approx([grey] * 3, abs=1) for grey in GREY]
        assert light == [pytest.approx([WHITE - grey] * 3, abs=1) for grey in GREY]


IMAGES = {
    "8 bits, WhiteIsZero": (tiff(255 - ramp("u1", 0, 255), "miniswhite"), GREY),
    "12 bits in 16, RGB": (png(TWELVE_RGB), GREY),
    "12 bits in 16, RGBA": (png(stacked(TWELVE, TWELVE, TWELVE, OPAQUE)), GREY),
    "12 bits in 16, alpha too": (png(stacked(TWELVE, TWELVE, TWELVE, OPAQUE // 16)), GREY),
    "12 bits in 16, LA": (png(stacked(TWELVE, OPAQUE)), GREY),
    "10 bits in 16, RGB": (png(stacked(*[ramp("u2", 0, 1023)] * 3)), GREY),
    "12 bits in 16, TIFF": (tiff(TWELVE_RGB, "rgb"), GREY),
    "12 bits in 16, TIFF by channel": (tiff(np.moveaxis(TWELVE_RGB, -1, 0), "rgb", planarconfig="separate"), GREY),
    "12 bits in 16, TIFF with alpha": (tiff(stacked(TWELVE, OPAQUE), extrasamples=["unassalpha"]), GREY),
    "12 bits packed": (tiff(TWELVE, bitspersample=12), GREY),
    "TIFF with a fourth channel of unknown meaning": (
        tiff(stacked(TWELVE, TWELVE, TWELVE, 0 * TWELVE), "rgb", extrasamples=["unspecified"]), GREY
    ),
    "16 bits, dark, RGB": (png(stacked(*[ramp("u2", 0, 32_896)] * 3)), [0, 33, 65, 98, 128]),
    "float RGB": (tiff(stacked(*[ramp("f4", 0, 1)] * 3), "rgb"), GREY),
    "float RGBA": (tiff(stacked(*[ramp("f4", 0, 1)] * 3, OPAQUE / np.float32(65_535)), "rgb", extrasamples=[2]), GREY),
    "transparent black": (png(DEEP, key=[0]), [WHITE, *GREY[1:]]),
    "transparent white": (png(np.where(RAMP * 0 + ROWS < 9, 65_535, TWELVE).astype("u2"), key=[65_535]), GREY),
    "transparent color": (png(TWELVE_RGB, key=[0, 0, 0]), [WHITE, *GREY[1:]]),
    "half transparent": (png(stacked(0 * DEEP, OPAQUE // 2)), [128] * 5),
    "multiplied by alpha": (tiff(stacked(*[OPAQUE // 2] * 4), "rgb", extrasamples=["assocalpha"]), [WHITE] * 5),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), IMAGES.values(), ids=IMAGES)
def test_image_of_more_than_8_bits_is_read(data, expected):
    assert printed(data) == [pytest.approx([grey] * 3, abs=2) for grey in expected]


@pytest.mark.parametrize("value", [0, 65_535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_defect_pixel_does_not_darken_the_others(channels, value):
    samples = 30_000 + TWELVE if channels == 1 else TWELVE
    samples = stacked(*[samples] * channels) if channels in (1, 3) else stacked(*[samples] * (channels - 1), OPAQUE)
    samples[0, 30, 0] = value
    assert printed(png(samples)) == [pytest.approx([grey] * 3, abs=2) for grey in GREY]


def test_few_bright_pixels_on_a_constant_background_stay_bright():
    samples = np.full((48, 64), 7, "u2")
    samples[24, 16] = 900
    assert printed(png(samples)) == [[0] * 3, [255] * 3, *[[0] * 3] * 3]


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_constant_image_is_black_and_nan_too(photometric):
    assert printed(tiff(np.full((48, 64), 9, "u2"), photometric)) == [[0] * 3] * 5
    samples = ramp("f4", 0, 1)
    samples[24, COLUMNS] = np.nan
    assert printed(tiff(samples, photometric)) == [[0] * 3] * 5


@pytest.mark.parametrize("write", [png, lambda samples: tiff(samples, extratags=[(274, 3, 1, 6, True)])])
def test_orientation_of_a_16_bit_image_is_applied(write):
    data = write(DEEP)
    if data.startswith(b"\x89PNG"):
        exif = Image.Exif()
        exif[274] = 6
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        data = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    image = np.asarray(load_image(data))[..., 0]  # rotated clockwise: dark at the top
    assert (image.shape, image[0, 0], image[-1, 0]) == ((64, 48), 0, 255)


def test_pil_image_of_16_bits_with_a_transparent_value():
    image = Image.fromarray(DEEP)
    image.info["transparency"] = 0
    assert np.asarray(to_rgb(image))[24, COLUMNS, 0].tolist() == [WHITE, *GREY[1:2], 130, *GREY[3:]]


def changed_tag(data, code, value):
    """Return a little-endian TIFF with another number in a tag of one SHORT or LONG."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[code].offset + 8
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


BROKEN = {
    "complex numbers": (tiff(ramp("c8", 0, 1)), "TIFF with 1 samples of 64 bits per pixel, sample format 6: 1 to 4"),
    "five channels": (tiff(stacked(*[DEEP] * 5), extrasamples=[0] * 4), "TIFF with 5 samples of 16 bits"),
    "truncated": (tiff(DEEP)[:-50], "failed to read 6144 bytes, got 60"),
    "truncated, compressed": (tiff(DEEP, compression="zlib", rowsperstrip=9)[:-50], "."),
    "truncated PNG": (png(DEEP)[:-50], "."),
    "no strip": (changed_tag(tiff(DEEP), 279, 0), "a part of the image is missing"),
    "too many rows": (changed_tag(tiff(DEEP), 257, 2**31), "64 x 2147483648 pixels are more than 89,478,485"),
    "more rows than strips": (changed_tag(tiff(DEEP, rowsperstrip=9), 257, 99), "a part of the image is missing"),
    "two heights": (tiff(DEEP).replace(b"\1\1\4\0\1\0", b"\1\1\4\0\2\0", 1), "the tags of this TIFF are invalid"),
    "sample format of no standard": (changed_tag(tiff(ramp("i2", 0, 9)), 339, 9), "TIFF with 1 samples of 16 bits"),
}


@pytest.mark.parametrize(("data", "cause"), BROKEN.values(), ids=BROKEN)
def test_invalid_image_of_more_than_8_bits_raises(data, cause):
    with pytest.raises(ValueError, match=f"^cannot read image bytes: .*{cause}"):
        load_image(data)


def test_frame_of_a_16_bit_tiff():
    data = tiff(np.stack([0 * DEEP, DEEP]))
    assert np.asarray(load_image(data))[24, 63, 0] == 0
    assert np.asarray(decode_rgb(data, frame=1))[24, 63, 0] == 255
    with pytest.raises(ValueError, match="no frame 2: it has 2, counted from 0"):
        decode_rgb(data, frame=2)
