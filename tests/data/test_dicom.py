"""DICOM files come out as the picture that the standard means, and nothing else of them comes out."""

import builtins
import io
import logging
import shutil
import subprocess
import sys
import traceback

import datasets
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medcap.data import dicom_streams, images
from medcap.data.dicom import is_dicom
from medcap.data.images import decode_image, index_images, load_image, read_image

SECRETS = ("Secret^Person", "PID-4711", "19010203", "not-a-date", "St. Nowhere", "9.9.9.bad-uid")


def sequence(**elements):
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]


def dicom(pixels, syntax=ExplicitVRLittleEndian, **elements):
    """A file with the given stored values, (H, W), (H, W, 3) or (frames, H, W)."""
    pixels = np.asarray(pixels)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    is_colour = pixels.ndim == 3 and pixels.shape[2] == 3
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if is_colour else (1, "MONOCHROME2")
    if is_colour:
        data.PlanarConfiguration = 0
    if pixels.ndim == 3 and not is_colour:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:2] if is_colour else pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def file_of(data, path):
    data.save_as(path, enforce_file_format=True)
    return path


U8, U16, I16 = np.uint8, np.uint16, np.int16
# name: (stored values of one row, elements, the 8-bit row that must come out)
GREY = {
    "no window: least to greatest": (U16([100, 150, 200]), {}, [0, 128, 255]),
    "signed": (I16([-1000, 0, 1000]), {}, [0, 128, 255]),
    "flat": (U16([7, 7, 7]), {}, [0, 0, 0]),
    "12 of 16 bits": (U16([0, 2048, 4095]), {"BitsStored": 12, "HighBit": 11}, [0, 128, 255]),
    "padding is no value": (I16([-2000, 0, 1000]), {"PixelPaddingValue": -2000}, [0, 0, 255]),
    "padding range": (
        U16([65535, 60000, 0, 100]),
        {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60000},
        [255, 255, 0, 255],
    ),
    "window": (U16([0, 100, 150, 200, 999]), {"WindowCenter": 150, "WindowWidth": 101}, [0, 1, 129, 255, 255]),
    "exact window": (
        U16([0, 100, 150, 200, 999]),
        {"WindowCenter": 150, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"},
        [0, 0, 128, 255, 255],
    ),
    "sigmoid": (
        U16([0, 150, 999]),
        {"WindowCenter": 150, "WindowWidth": 20, "VOILUTFunction": "SIGMOID"},
        [0, 128, 255],
    ),
    "the first of several windows": (
        U16([0, 100, 200]),
        {"WindowCenter": [100, 5], "WindowWidth": [201, 2]},
        [1, 128, 255],
    ),
    "rescaled before the window": (
        U16([0, 1024, 1064, 1104, 4000]),
        {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 81},
        [0, 2, 129, 255, 255],
    ),
    "rescaled downwards": (U16([0, 50, 100]), {"RescaleSlope": -1, "RescaleIntercept": 0}, [255, 128, 0]),
    "monochrome 1": (U8([0, 51, 255]), {"PhotometricInterpretation": "MONOCHROME1"}, [255, 204, 0]),
    "inverse presentation": (U8([0, 51, 255]), {"PresentationLUTShape": "INVERSE"}, [255, 204, 0]),
    "a width of 0 is no window": (U16([0, 50, 100]), {"WindowCenter": 5, "WindowWidth": 0}, [0, 128, 255]),
    "modality LUT": (
        U8([0, 1, 2]),
        {
            "ModalityLUTSequence": sequence(
                LUTDescriptor=[3, 0, 16], LUTData=U16([400, 100, 200]).tobytes(), ModalityLUTType="US"
            )
        },
        [255, 0, 85],
    ),
    "VOI LUT": (
        U8([0, 1, 2]),
        {"VOILUTSequence": sequence(LUTDescriptor=[3, 0, 8], LUTData=U16([255, 0, 51]).tobytes())},
        [255, 0, 51],
    ),
}


@pytest.mark.parametrize(("stored", "elements", "expected"), GREY.values(), ids=GREY)
def test_grey_values_are_shown_as_the_standard_says(tmp_path, stored, elements, expected):
    path = file_of(dicom(stored[None], **elements), tmp_path / "a.dcm")
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == expected
    assert np.ptp(np.asarray(image), axis=2).max() == 0


COLOUR = {
    "RGB": (U8([[[255, 0, 9], [1, 2, 3]]]), {}, [[255, 0, 9], [1, 2, 3]]),
    "RGB of 16 bits": (U16([[[65535, 0, 257], [0, 0, 0]]]), {}, [[255, 0, 1], [0, 0, 0]]),
    "YBR": (
        U8([[[76, 85, 255], [255, 128, 128]]]),
        {"PhotometricInterpretation": "YBR_FULL"},
        [[254, 0, 0], [255] * 3],
    ),
    "palette": (
        U8([[1, 0]]),
        {
            "PhotometricInterpretation": "PALETTE COLOR",
            "RedPaletteColorLookupTableDescriptor": [2, 0, 16],
            "GreenPaletteColorLookupTableDescriptor": [2, 0, 16],
            "BluePaletteColorLookupTableDescriptor": [2, 0, 16],
            "RedPaletteColorLookupTableData": U16([0, 65535]).tobytes(),
            "GreenPaletteColorLookupTableData": U16([65535, 0]).tobytes(),
            "BluePaletteColorLookupTableData": U16([0, 257]).tobytes(),
        },
        [[255, 0, 1], [0, 255, 0]],
    ),
}


@pytest.mark.parametrize(("stored", "elements", "expected"), COLOUR.values(), ids=COLOUR)
def test_colours_become_rgb(tmp_path, stored, elements, expected):
    image = read_image(file_of(dicom(stored, **elements), tmp_path / "a.dcm"))
    assert np.abs(np.asarray(image)[0].astype(int) - expected).max() <= 1  # YBR is rounded twice


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_compressed_files_give_the_same_picture(tmp_path, syntax):
    stored = np.random.default_rng(0).integers(0, 4000, (64, 72)).astype(U16)
    plain, packed = dicom(stored), dicom(stored)
    packed.compress(syntax)
    first, second = (read_image(file_of(data, tmp_path / f"{n}.dcm")) for n, data in enumerate((plain, packed)))
    assert np.array_equal(np.asarray(first), np.asarray(second))


FRAMES = np.stack([np.full((4, 6), level, U8) for level in (0, 60, 120, 255)])


@pytest.mark.parametrize(("frame", "level"), [(None, 120), (0, 0), (1, 60), (3, 255)])
def test_the_middle_frame_is_read_or_the_one_asked_for(tmp_path, frame, level):
    path = file_of(dicom(FRAMES, WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    assert np.asarray(read_image(path, frame)).max() == level


@pytest.mark.parametrize("frame", [4, -1])
def test_a_frame_that_is_not_there_raises(tmp_path, frame):
    path = file_of(dicom(FRAMES), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=rf"a.dcm: there is no frame {frame}: it has 4, counted from 0"):
        read_image(path, frame)


def test_frames_of_other_formats_are_chosen_too(tmp_path):
    levels = [Image.new("L", (3, 3), level) for level in (10, 200)]
    levels[0].save(tmp_path / "a.tif", save_all=True, append_images=levels[1:])
    assert [np.asarray(read_image(tmp_path / "a.tif", frame)).max() for frame in (None, 0, 1)] == [10, 10, 200]


def test_functional_groups_count_for_their_frame(tmp_path):
    windows = [sequence(WindowCenter=centre, WindowWidth=101)[0] for centre in (50, 1050)]
    groups = [sequence(FrameVOILUTSequence=[window])[0] for window in windows]
    stored = np.stack([np.array([[0, 500, 1050, 1050]], U16)] * 2)
    path = file_of(dicom(stored, PerFrameFunctionalGroupsSequence=groups), tmp_path / "a.dcm")
    assert np.asarray(read_image(path, 0))[0, :, 0].tolist() == [1, 255, 255, 255]
    assert np.asarray(read_image(path, 1))[0, :, 0].tolist() == [0, 0, 129, 129]


def test_every_way_to_read_an_image_reads_dicom(tmp_path):
    path = file_of(dicom(U8([[0, 200]]), WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    column = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    for image in (load_image(path.read_bytes()), decode_image(path.read_bytes()), load_image(column[0]["image"])):
        assert np.asarray(image)[0, :, 0].tolist() == [0, 200]


def test_dicom_files_are_found_in_folders_with_and_without_a_name_that_says_so(tmp_path):
    file_of(dicom(U8([[1]])), tmp_path / "a.DCM")
    file_of(dicom(U8([[1]])), tmp_path / "IM000001")
    shutil.copy(tmp_path / "a.DCM", tmp_path / "DICOMDIR")
    (tmp_path / "README").write_text("no image")
    assert sorted(index_images(tmp_path)) == ["IM000001", "a"]
    assert not is_dicom(tmp_path / "DICOMDIR")


def test_a_file_without_preamble_is_read_by_its_name(tmp_path):
    data = dicom(U8([[0, 255]]), syntax=ImplicitVRLittleEndian)
    pydicom.dcmwrite(tmp_path / "old.dcm", data, enforce_file_format=False, implicit_vr=True, little_endian=True)
    content = (tmp_path / "old.dcm").read_bytes()
    (tmp_path / "old.dcm").write_bytes(content[132:] if content[128:132] == b"DICM" else content)
    assert np.asarray(read_image(tmp_path / "old.dcm"))[0, :, 0].tolist() == [0, 255]


def test_another_image_under_the_name_of_a_dicom_file_is_read_as_what_it_is(tmp_path):
    Image.new("L", (3, 2), 77).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.dcm")
    assert np.asarray(read_image(tmp_path / "a.dcm")).max() == 77


def without_pixels():
    data = dicom(U8([[1]]), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5")
    del data.PixelData
    return data


def video():
    data = dicom(U8([[1]]))
    data.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data["PixelData"].is_undefined_length = True
    return data


BROKEN = {
    "no picture": (without_pixels, r"a DICOM file without a picture \(RT Plan Storage\)"),
    "cut short": (
        lambda: dicom(U16([[1, 2]]), Rows=90),
        r"its pixels cannot be decoded: 4 bytes, less than the 360 expected",
    ),
    "a compression nobody reads": (video, r"compressed as MPEG2 Main Profile .* \(1\.2\.840\..*\), which no package"),
    "a bomb": (
        lambda: dicom(U8([[1]]), Rows=60000, Columns=60000),
        r"60000 x 60000 pixels are more than the \d+ allowed",
    ),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_shown_raises_in_one_line(tmp_path, make, message):
    path = file_of(make(), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=f"cannot read image .*a.dcm: {message}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_compression_whose_package_is_missing_names_it(tmp_path, monkeypatch):
    data = dicom(np.zeros((8, 8), U8))
    data.compress(JPEGLSLossless)
    path = file_of(data, tmp_path / "a.dcm")
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(
        ValueError, match=r"JPEG-LS Lossless .*4\.80\), which needs a package: pip install .*\[dicom\]"
    ):
        read_image(path)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    path = file_of(dicom(U8([[1]])), tmp_path / "a.dcm")
    genuine = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"a DICOM file, which needs pydicom: pip install 'medcap\[dicom\]'"):
        images.read_image(path)


def with_secrets(**elements):
    data = dicom(U8([[0, 255]]), PatientName=SECRETS[0], PatientID=SECRETS[1], PatientBirthDate=SECRETS[2], **elements)
    with pydicom.config.disable_value_validation():
        data.StudyDate, data.InstitutionName, data.StudyInstanceUID = SECRETS[3:]
        data.AcquisitionDate = SECRETS[0]
    return data


@pytest.mark.parametrize("cut", [0, 1, 40, 200, 330])
@pytest.mark.parametrize("elements", [{}, {"Rows": 99}, {"PhotometricInterpretation": "WHAT"}], ids=str)
def test_no_tag_of_the_patient_leaves_the_file(tmp_path, elements, cut, capfd, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    with pydicom.config.disable_value_validation():
        content = file_of(with_secrets(**elements), tmp_path / "a.dcm").read_bytes()
    assert all(secret.encode() in content for secret in SECRETS)
    (tmp_path / "a.dcm").write_bytes(content[: len(content) - cut])
    said = ""
    try:
        image = read_image(tmp_path / "a.dcm")
        assert not image.info
    except ValueError as error:
        said = repr(error) + repr(error.__cause__)
    said += caplog.text + "".join(str(warning.message) for warning in recwarn) + "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret in said]


TAGS = {  # tags that decide how pixels are read, with a name in them
    "SOPClassUID": {"SOPClassUID": SECRETS[0], "Rows": 0},
    "PhotometricInterpretation": {"PhotometricInterpretation": SECRETS[0]},
    "VOILUTFunction": {"VOILUTFunction": SECRETS[0], "WindowCenter": 5, "WindowWidth": 5},
    "PresentationLUTShape": {"PresentationLUTShape": SECRETS[0]},
    "RescaleType": {"RescaleType": SECRETS[0], "RescaleSlope": 1, "RescaleIntercept": 0},
}


@pytest.mark.parametrize("elements", TAGS.values(), ids=TAGS)
def test_no_tag_about_pixels_is_quoted(tmp_path, elements, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with pydicom.config.disable_value_validation():
        path = file_of(dicom(U8([[0, 255]]), **elements), tmp_path / "a.dcm")
        assert SECRETS[0].encode() in path.read_bytes()
    assert SECRETS[0] not in said_of(path) + caplog.text + "".join(capfd.readouterr())


def said_of(path):
    """The traceback of reading it, or nothing."""
    try:
        read_image(path)
    except ValueError as error:
        return "".join(traceback.format_exception(error))
    return ""


def test_a_number_of_frames_that_is_none_is_not_quoted(tmp_path):
    path = file_of(dicom(U8([[0, 255]]), NumberOfFrames=111111111111), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"111111111111", b"Doe^Jane1970"))
    assert "its NumberOfFrames is no whole number" in said_of(path)
    assert "Doe" not in said_of(path)


def test_a_transfer_syntax_that_is_none_is_not_quoted(tmp_path):
    with pydicom.config.disable_value_validation():
        path = file_of(dicom(U8([[0, 255]])), tmp_path / "a.dcm")
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"Doe^Jane 1970-01-01 "))
    assert "cannot read image" in said_of(path)
    assert "Doe" not in said_of(path)


def jpeg_2000():
    data = dicom(np.zeros((64, 64), U8))
    data.compress(JPEG2000Lossless)
    return data, b"\xff\x4f\xff\x51", 8


def jpeg_ls():
    data = dicom(np.zeros((64, 64), U8))
    data.compress(JPEGLSLossless)
    return data, b"\xff\xf7", 5


@pytest.mark.parametrize("make", [jpeg_2000, jpeg_ls])
def test_a_stream_that_is_larger_than_its_tags_say_is_not_decoded(tmp_path, make, monkeypatch):
    data, marker, place = make()
    content = data.PixelData
    start = content.index(marker) + place
    width = 4 if place == 8 else 2
    data.PixelData = content[:start] + (30_000).to_bytes(width, "big") * 2 + content[start + 2 * width :]
    path = file_of(data, tmp_path / "a.dcm")
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *args, **kwargs: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="compressed as 30000 x 30000 pixels of 1 colours, and said to be 64 x 64"):
        read_image(path)


def test_a_deflated_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    picture = dicom(np.arange(0, 256, dtype=U8).reshape(16, 16), DeflatedExplicitVRLittleEndian)
    path = file_of(picture, tmp_path / "a.dcm")
    assert np.asarray(read_image(path).convert("L"))[0, 7] == 7
    bomb = file_of(dicom(np.zeros((2000, 2000), U8), DeflatedExplicitVRLittleEndian), tmp_path / "b.dcm")
    assert bomb.stat().st_size < 10_000
    monkeypatch.setattr(dicom_streams, "MAX_INFLATED", 1_000_000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **kwargs: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="unpacks to more than the 1,000,000 bytes"):
        read_image(bomb)


def test_the_picture_alone_is_saved_on(tmp_path):
    image = read_image(file_of(with_secrets(), tmp_path / "a.dcm"))
    image.save(buffer := io.BytesIO(), "PNG")
    assert not [secret for secret in SECRETS if secret.encode() in buffer.getvalue()]


def jpeg(kind="JPEG", **options):
    Image.fromarray(np.zeros((64, 64), U8)).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def encapsulated(stream, syntax, rows=64, columns=64):
    data = dicom(np.zeros((rows, columns), U8))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([stream])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return data


SIZ = b"\xff\x4f\xff\x51"


def lying(stream, marker=SIZ, place=8, width=4):
    start = stream.index(marker) + place
    return stream[:start] + (30_000).to_bytes(width, "big") * 2 + stream[start + 2 * width :]


def behind_another_size():
    stream, plain = jpeg("JPEG2000", no_jp2=False), jpeg("JPEG2000", no_jp2=True)
    box = (len(plain) + 8).to_bytes(4, "big") + b"uuid" + plain
    start = stream.index(b"jp2c") - 4
    return stream[:start] + box + lying(stream[start:])


def second_frame_header():
    stream = jpeg()
    start = stream.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
    return stream[:end] + lying(stream[start:end], b"\xff\xc0", 5, 2) + stream[end:]


def behind_an_offset_table():
    data = encapsulated(jpeg("JPEG2000", no_jp2=True), JPEG2000Lossless)
    honest = data.PixelData
    lie = lying(jpeg("JPEG2000", no_jp2=True))
    lie += bytes(len(lie) % 2)
    data.PixelData = honest + b"\xfe\xff\x00\xe0" + len(lie).to_bytes(4, "little") + lie
    start = len(honest) - 12  # counted from behind the basic offset table
    data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = (n.to_bytes(8, "little") for n in (start, len(lie)))
    return data


def tiles_of_one_pixel():
    sizes, tiles = ((64).to_bytes(4, "big") * 2 + bytes(8), (1).to_bytes(4, "big") * 2)
    stream = jpeg("JPEG2000", no_jp2=True)
    start = stream.index(SIZ) + 8
    big = (256).to_bytes(4, "big") + (255).to_bytes(4, "big") + bytes(8)
    assert stream[start : start + 16] == sizes
    return encapsulated(stream[:start] + big + tiles + stream[start + 24 :], JPEG2000Lossless, 255, 256)


LIES = {
    "JP2": lambda: encapsulated(lying(jpeg("JPEG2000", no_jp2=False)), JPEG2000Lossless),
    "the size of a JP2 file": lambda: encapsulated(
        lying(jpeg("JPEG2000", no_jp2=False), b"ihdr", 4), JPEG2000Lossless
    ),
    "JP2, a small size before it": lambda: encapsulated(behind_another_size(), JPEG2000Lossless),
    "JPEG": lambda: encapsulated(lying(jpeg(), b"\xff\xc0", 5, 2), JPEGBaseline8Bit),
    "JPEG, a small size before it": lambda: encapsulated(second_frame_header(), JPEGBaseline8Bit),
    "JPEG behind a stray byte": lambda: encapsulated(
        lying(jpeg(), b"\xff\xc0", 5, 2).replace(b"\xff\xdb", b"\0\xff\xdb", 1), JPEGBaseline8Bit
    ),
    "JPEG, its segments of no known kind": lambda: encapsulated(
        jpeg().replace(b"\xff\xdb", b"\xff\xf1\0\4\0\0\xff\xdb", 1), JPEGBaseline8Bit
    ),
    "a JPEG 2000 stream behind a stray byte": lambda: encapsulated(
        b"\0" + jpeg("JPEG2000", no_jp2=True), JPEG2000Lossless
    ),
    "an offset table that points elsewhere": behind_an_offset_table,
    "tiles of one pixel": tiles_of_one_pixel,
}


@pytest.mark.parametrize("make", LIES.values(), ids=LIES)
def test_no_decoder_sees_a_stream_whose_size_is_not_certain(tmp_path, make, monkeypatch):
    data = make()
    path, called = file_of(data, tmp_path / "a.dcm"), []
    decoder = pydicom.pixels.get_decoder(data.file_meta.TransferSyntaxUID)
    monkeypatch.setattr(decoder, "_available", {"any": lambda *_: called.append(1)})
    assert "cannot read image" in said_of(path)
    assert not called


@pytest.mark.parametrize("no_jp2", [True, False])
def test_jpeg_2000_is_read_with_and_without_the_wrapping_of_a_file(tmp_path, no_jp2):
    path = file_of(encapsulated(jpeg("JPEG2000", no_jp2=no_jp2), JPEG2000Lossless), tmp_path / "a.dcm")
    assert read_image(path).size == (64, 64)


@pytest.mark.parametrize("stated", [0, 20, None])
def test_a_deflated_file_is_found_wherever_its_data_begin(tmp_path, stated, monkeypatch):
    path = file_of(dicom(np.zeros((2000, 2000), U8), DeflatedExplicitVRLittleEndian), tmp_path / "a.dcm")
    content = path.read_bytes()
    begin = 144 + int.from_bytes(content[140:144], "little")
    if stated is None:  # no length at all, and much before the transfer syntax
        filler = b"\2\0\1\0OB\0\0" + (8000).to_bytes(4, "little") + bytes(8000)
        content = content[:132] + filler + content[144:]
    else:
        content = content[:140] + stated.to_bytes(4, "little") + content[144:]
    path.write_bytes(content)
    assert begin < len(content)
    monkeypatch.setattr(dicom_streams, "MAX_INFLATED", 1_000_000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **kwargs: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="unpacks to more than the 1,000,000 bytes"):
        read_image(path)


QUOTED = (
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated "
    "BitsStored PixelRepresentation PixelPaddingValue RescaleSlope RescaleIntercept WindowCenter WindowWidth "
    "VOILUTFunction PresentationLUTShape ModalityLUTSequence VOILUTSequence PerFrameFunctionalGroupsSequence "
    "SpecificCharacterSet"
).split()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=str)
@pytest.mark.parametrize("name", QUOTED)
def test_a_text_under_any_tag_about_pixels_is_not_quoted(tmp_path, name, syntax, capfd, caplog, recwarn):
    data = dicom(np.arange(4096, dtype=U8).reshape(64, 64), WindowCenter=30, WindowWidth=20)
    if syntax.is_encapsulated:
        data.compress(syntax)
    data.add_new(name, "LO", "Doe^Jane 1970")
    path, own = file_of(data, tmp_path / "a.dcm"), pydicom.datadict.dictionary_VR(name).encode()
    recwarn.clear()  # what was said while it was written
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    lo = path.read_bytes()
    assert lo.count(b"LO\x0e\0Doe^Jane 1970 ") == 1
    for content in (lo, lo.replace(b"LO\x0e\0Doe", own + b"\x0e\0Doe")):  # a file may lie about the VR, or not
        path.write_bytes(content)
        said = said_of(path) + caplog.text + "".join(capfd.readouterr())
        assert "Doe" not in said + "".join(str(warning.message) for warning in recwarn)


def test_importing_the_package_registers_no_pillow_plugin_and_reading_a_dicom_file_does(tmp_path):
    path = file_of(dicom(U8([[0, 200]]), WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    program = (
        "import sys; from PIL import Image; import medcap.data.images as images; "
        "assert 'DICOM' not in Image.OPEN; print(images.read_image(sys.argv[1]).size); assert 'DICOM' in Image.OPEN"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(2, 1)\n", 0), done.stderr


def test_a_pydicom_without_the_private_functions_is_reported(tmp_path, monkeypatch):
    path = file_of(dicom(U8([[0, 200]])), tmp_path / "a.dcm")
    monkeypatch.delattr(pydicom.filereader, "_read_file_meta_info")
    with pytest.raises(ValueError, match=r"pydicom \d.* has no filereader._read_file_meta_info; install pydicom"):
        read_image(path)
