"""Stored values, padding and look-up tables are read as the standard says, or one line names the tag."""

import numpy as np
import pytest
from dicom_files import I16, U8, U16, dicom, file_of, read_error, sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medcap.data.images import read_image

PAD = "PixelPaddingValue"
RAMP = np.linspace(0, 4095, 2001).round().astype(U16)


def table(first, bits, vr="US"):
    """A VOI LUT whose descriptor has a VR, which pydicom would otherwise choose."""
    item = sequence(LUTData=RAMP.tobytes())
    item[0].add_new("LUTDescriptor", vr, [2001, first, bits])
    return item


NARROW = [("RescaleSlope", "DS", 0.001), ("WindowCenter", "DS", 0.25), ("WindowWidth", "DS", 0.5)]
GRAY = {  # stored values of one row, (name, VR, value) of elements, expected 8-bit row
    "signed padding as US": (I16([-2000, 0, 500, 1000]), [(PAD, "US", 63536)], [0, 0, 128, 255]),
    "unsigned padding as SS": (U16([65535, 0, 500, 1000]), [(PAD, "SS", -1)], [0, 0, 128, 255]),
    "padding as OW": (I16([-2000, 0, 500, 1000]), [(PAD, "OW", b"\x30\xf8")], [0, 0, 128, 255]),
    "padding in the unused bits": (
        U16([63536, 0, 2048, 4095]),
        [(PAD, "US", 63536), ("BitsStored", "US", 12), ("HighBit", "US", 11)],
        [0, 0, 128, 255],
    ),
    "padding is black in a window": (
        U16([65535, 0, 500, 1000]),
        [(PAD, "US", 65535), ("WindowCenter", "DS", 500), ("WindowWidth", "DS", 1001)],
        [0, 0, 128, 255],
    ),
    "padding is black in MONOCHROME1": (
        U16([0, 1, 501, 1001]),
        [(PAD, "US", 0), ("PhotometricInterpretation", "CS", "MONOCHROME1")],
        [0, 255, 128, 0],
    ),
    "left-aligned": (U16([0, 2048 << 4, 4095 << 4]), [("BitsStored", "US", 12)], [0, 128, 255]),
    "overlay in the unused bits": (
        U16([0, 2048 | 0x8000, 4095]),
        [("BitsStored", "US", 12), ("HighBit", "US", 11)],
        [0, 128, 255],
    ),
    "intercept alone": (
        U16([0, 500, 1000]),
        [("RescaleIntercept", "DS", -500), ("WindowCenter", "DS", 0), ("WindowWidth", "DS", 1001)],
        [0, 128, 255],
    ),
    "slope alone": (
        U16([0, 500, 1000]),
        [("RescaleSlope", "DS", 2), ("WindowCenter", "DS", 1000), ("WindowWidth", "DS", 2001)],
        [0, 128, 255],
    ),
    "empty slope and intercept": (
        U16([0, 500, 1000]),
        [("RescaleSlope", "DS", None), ("RescaleIntercept", "DS", None)],
        [0, 128, 255],
    ),
    "empty function": (
        U16([0, 500, 1000]),
        [("VOILUTFunction", "CS", ""), ("WindowCenter", "DS", 500), ("WindowWidth", "DS", 1001)],
        [0, 128, 255],
    ),
    "VOI LUT, signed first value as US": (
        I16([-1000, 0, 1000]),
        [("VOILUTSequence", "SQ", table(64536, 12))],
        [0, 127, 255],
    ),
    "VOI LUT, signed first value as SS": (
        I16([-1000, 0, 1000]),
        [("VOILUTSequence", "SQ", table(-1000, 12, "SS"))],
        [0, 127, 255],
    ),
    "VOI LUT after rescaling below 0": (
        U16([0, 500, 1000]),
        [("VOILUTSequence", "SQ", table(64536, 12)), ("RescaleSlope", "DS", 2), ("RescaleIntercept", "DS", -1000)],
        [0, 127, 255],
    ),
    "VOI LUT of 12 bits said to be 16": (
        U16([0, 1000, 2000]),
        [("VOILUTSequence", "SQ", table(0, 16))],
        [0, 127, 255],
    ),
    "VOI LUT of two entries a word": (
        U8([0, 1, 2]),
        [("VOILUTSequence", "SQ", sequence(LUTDescriptor=[3, 0, 8], LUTData=b"\xff\0\x33\0"))],
        [255, 0, 51],
    ),
    "narrow exact window": (
        U16([0, 250, 500, 999]),
        [*NARROW, ("VOILUTFunction", "CS", "LINEAR_EXACT")],
        [0, 128, 255, 255],
    ),
    "narrow sigmoid": (
        U16([0, 250, 65535]),
        [*NARROW, ("VOILUTFunction", "CS", "SIGMOID")],
        [30, 128, 255],
    ),
}


def with_elements(data, elements):
    for name, vr, value in elements:
        data.add_new(name, vr, value)
    return data


def gray(path):
    return np.asarray(read_image(path))[0, :, 0].tolist()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("stored", "elements", "expected"), GRAY.values(), ids=GRAY)
def test_unusual_tags_are_displayed_as_in_the_standard(tmp_path, stored, elements, expected, syntax):
    data = with_elements(dicom(stored[None], syntax), elements)
    assert gray(file_of(data, tmp_path / "a.dcm")) == expected


def test_window_of_float_pixels_is_used(tmp_path):
    data = dicom(np.zeros((1, 4), np.float32), BitsAllocated=32, WindowCenter=0.001, WindowWidth=0.002)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.FloatPixelData = np.float32([0, 0.001, 0.002, 0.003]).tobytes()
    assert gray(file_of(data, tmp_path / "a.dcm")) == [0, 128, 255, 255]


@pytest.mark.parametrize("name", ["HighBit", "SamplesPerPixel"])
def test_absent_tag_that_follows_from_others_is_completed(tmp_path, name):
    data = dicom(U16([[0, 2048, 4095]]), BitsStored=12)
    data.HighBit = 11
    del data[name]
    assert gray(file_of(data, tmp_path / "a.dcm")) == [0, 128, 255]


def test_explicit_big_endian_without_meta_information_is_detected(tmp_path):
    content = file_of(dicom(U16([[0, 500, 1000]]).byteswap(), ExplicitVRBigEndian), tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[content.index(b"\0\x08\0\x16") :])
    assert gray(tmp_path / "a.dcm") == [0, 128, 255]


def test_entries_of_a_palette_are_in_the_low_byte(tmp_path):
    data = dicom(U8([[0, 128, 255]]), PhotometricInterpretation="PALETTE COLOR")
    for channel in ("Red", "Green", "Blue"):
        setattr(data, f"{channel}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{channel}PaletteColorLookupTableData", np.arange(256).astype(U16).tobytes())
    assert gray(file_of(data, tmp_path / "a.dcm")) == [0, 128, 255]


WRONG = {  # (name, VR, value), or the name of a tag that is absent, and the message
    "PhotometricInterpretation": "PhotometricInterpretation is missing: it can be MONOCHROME1",
    "BitsStored": "BitsStored is missing",
    "BitsAllocated": "BitsAllocated is missing",
    "PixelRepresentation": "PixelRepresentation is missing",
    ("PhotometricInterpretation", "CS", "GREY"): "PhotometricInterpretation is unknown",
    ("PhotometricInterpretation", "CS", "RGB"): r"SamplesPerPixel is 1, but RGB \(Phot.*\) has 3",
    ("BitsStored", "US", 17): "BitsStored 17, HighBit 15 and BitsAllocated 16 contradict",
    ("PixelRepresentation", "US", 2): "PixelRepresentation is 2: it can be 0 or 1",
    ("RescaleSlope", "DS", 0): "RescaleSlope is 0",
    ("VOILUTFunction", "CS", "WHAT"): "VOILUTFunction is unknown: it can be LINEAR",
    ("VOILUTSequence", "SQ", "no descriptor"): "LUTDescriptor is missing",
    ("VOILUTSequence", "SQ", "short"): "LUTData has 1 of the 3 entries",
}
COLORS = {
    "PlanarConfiguration": "PlanarConfiguration is missing",
    ("PhotometricInterpretation", "CS", "YBR_FULL"): "BitsAllocated is 16: YBR_FULL",
    ("PhotometricInterpretation", "CS", "MONOCHROME2"): "SamplesPerPixel is 3, but MONOCHROME2",
}
ITEMS = {"no descriptor": sequence(LUTExplanation="x"), "short": sequence(LUTDescriptor=[3, 0, 8], LUTData=b"\0\0")}


@pytest.mark.parametrize(("wrong", "message"), [*WRONG.items(), *COLORS.items()], ids=str)
def test_wrong_or_missing_tag_is_named(tmp_path, wrong, message):
    stored = U16([[[0, 500, 1000]]]) if wrong in COLORS else U16([[0, 500, 1000]])
    data = dicom(stored, WindowCenter=500, WindowWidth=1000)
    if isinstance(wrong, str):
        del data[wrong]
    else:
        data.add_new(*wrong[:2], ITEMS.get(wrong[2], wrong[2]))
    path = file_of(data, tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=f"cannot read image .*a.dcm: {message}"):
        read_image(path)
    assert "WHAT" not in read_error(path)
