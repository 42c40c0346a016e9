"""DICOM files are displayed as the standard requires."""

import builtins
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pydicom
import pytest
from dicom_files import I16, U8, U16, compressed, dicom, file_of, sequence
from PIL import Image
from pydicom.uid import (
    MPEG2MPML,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medcap.data import images
from medcap.data.dicom import NoImageError, is_dicom
from medcap.data.images import index_images, load_image, read_image

# stored values of one row, elements, expected 8-bit row
GRAY = {
    "no window: min to max": (U16([100, 150, 200]), {}, [0, 128, 255]),
    "signed": (I16([-1000, 0, 1000]), {}, [0, 128, 255]),
    "constant": (U16([7, 7, 7]), {}, [0, 0, 0]),
    "12 of 16 bits": (U16([0, 2048, 4095]), {"BitsStored": 12, "HighBit": 11}, [0, 128, 255]),
    "padding": (I16([-2000, 0, 1000]), {"PixelPaddingValue": -2000}, [0, 0, 255]),
    "padding range": (
        U16([65535, 60000, 0, 100]),
        {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60000},
        [0, 0, 0, 255],
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
    "first of several windows": (
        U16([0, 100, 200]),
        {"WindowCenter": [100, 5], "WindowWidth": [201, 2]},
        [1, 128, 255],
    ),
    "rescale before window": (
        U16([0, 1024, 1064, 1104, 4000]),
        {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 81},
        [0, 2, 129, 255, 255],
    ),
    "negative rescale slope": (U16([0, 50, 100]), {"RescaleSlope": -1, "RescaleIntercept": 0}, [255, 128, 0]),
    "monochrome 1": (U8([0, 51, 255]), {"PhotometricInterpretation": "MONOCHROME1"}, [255, 204, 0]),
    "inverse presentation": (U8([0, 51, 255]), {"PresentationLUTShape": "INVERSE"}, [255, 204, 0]),
    "window of width 0 is ignored": (U16([0, 50, 100]), {"WindowCenter": 5, "WindowWidth": 0}, [0, 128, 255]),
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


@pytest.mark.parametrize(("stored", "elements", "expected"), GRAY.values(), ids=GRAY)
def test_gray_values_are_displayed_as_in_the_standard(tmp_path, stored, elements, expected):
    path = file_of(dicom(stored[None], **elements), tmp_path / "a.dcm")
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == expected
    assert np.ptp(np.asarray(image), axis=2).max() == 0


COLOR = {
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


@pytest.mark.parametrize(("stored", "elements", "expected"), COLOR.values(), ids=COLOR)
def test_colors_become_rgb(tmp_path, stored, elements, expected):
    image = read_image(file_of(dicom(stored, **elements), tmp_path / "a.dcm"))
    assert np.abs(np.asarray(image)[0].astype(int) - expected).max() <= 1  # YBR is rounded twice


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_compressed_files_have_the_same_pixels(tmp_path, syntax):
    stored = np.random.default_rng(0).integers(0, 4000, (64, 72)).astype(U16)
    both = dicom(stored), compressed(dicom(stored), syntax)
    first, second = (read_image(file_of(data, tmp_path / f"{n}.dcm")) for n, data in enumerate(both))
    assert np.array_equal(np.asarray(first), np.asarray(second))


FRAMES = np.stack([np.full((4, 6), level, U8) for level in (0, 60, 120, 255)])


@pytest.mark.parametrize(("frame", "level"), [(None, 120), (0, 0), (1, 60), (3, 255)])
def test_middle_or_requested_frame_is_read(tmp_path, frame, level):
    path = file_of(dicom(FRAMES, WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    assert np.asarray(read_image(path, frame)).max() == level


@pytest.mark.parametrize("frame", [4, -1])
def test_missing_frame_raises(tmp_path, frame):
    path = file_of(dicom(FRAMES), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=rf"a.dcm: no frame {frame}: it has 4, counted from 0"):
        read_image(path, frame)


def test_frame_of_other_formats_is_read(tmp_path):
    levels = [Image.new("L", (3, 3), level) for level in (10, 200)]
    levels[0].save(tmp_path / "a.tif", save_all=True, append_images=levels[1:])
    assert [np.asarray(read_image(tmp_path / "a.tif", frame)).max() for frame in (None, 0, 1)] == [10, 10, 200]


def test_functional_groups_apply_to_their_frame(tmp_path):
    windows = [sequence(WindowCenter=centre, WindowWidth=101)[0] for centre in (50, 1050)]
    groups = [sequence(FrameVOILUTSequence=[window])[0] for window in windows]
    stored = np.stack([np.array([[0, 500, 1050, 1050]], U16)] * 2)
    path = file_of(dicom(stored, PerFrameFunctionalGroupsSequence=groups), tmp_path / "a.dcm")
    assert np.asarray(read_image(path, 0))[0, :, 0].tolist() == [1, 255, 255, 255]
    assert np.asarray(read_image(path, 1))[0, :, 0].tolist() == [0, 0, 129, 129]


def test_bytes_and_column_entries_are_read(tmp_path):
    path = file_of(dicom(U8([[0, 200]]), WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    column = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    for image in (load_image(path.read_bytes()), load_image(column[0]["image"])):
        assert np.asarray(image)[0, :, 0].tolist() == [0, 200]


def test_dicom_files_are_found_with_and_without_extension(tmp_path):
    file_of(dicom(U8([[1]])), tmp_path / "a.DCM")
    file_of(dicom(U8([[1]])), tmp_path / "IM000001")
    shutil.copy(tmp_path / "a.DCM", tmp_path / "DICOMDIR")
    (tmp_path / "README").write_text("no image")
    assert sorted(index_images(tmp_path)) == ["IM000001", "a"]
    assert not is_dicom(tmp_path / "DICOMDIR")


def test_file_without_preamble_is_detected_by_name(tmp_path):
    data = dicom(U8([[0, 255]]), syntax=ImplicitVRLittleEndian)
    pydicom.dcmwrite(tmp_path / "old.dcm", data, enforce_file_format=False, implicit_vr=True, little_endian=True)
    content = (tmp_path / "old.dcm").read_bytes()
    (tmp_path / "old.dcm").write_bytes(content[132:] if content[128:132] == b"DICM" else content)
    assert np.asarray(read_image(tmp_path / "old.dcm"))[0, :, 0].tolist() == [0, 255]


def test_png_named_dcm_is_read_as_png(tmp_path):
    Image.new("L", (3, 2), 77).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.dcm")
    assert np.asarray(read_image(tmp_path / "a.dcm")).max() == 77


def without_pixels(sop_class="1.2.840.10008.5.1.4.1.1.481.5"):
    data = dicom(U8([[1]]), SOPClassUID=sop_class)
    del data.PixelData
    return data


def cut_ct():
    return without_pixels("1.2.840.10008.5.1.4.1.1.2")


def video():
    data = dicom(U8([[1]]))
    data.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data["PixelData"].is_undefined_length = True
    return data


BROKEN = {
    "no image": (without_pixels, r"a DICOM file without an image \(RT Plan Storage\)"),
    "cut before the pixels": (cut_ct, r"a DICOM image without pixels or size \(CT Image Storage\): the file may"),
    "truncated": (
        lambda: dicom(U16([[1, 2]]), Rows=90),
        r"its pixels cannot be decoded: 4 of 360 bytes",
    ),
    "unsupported compression": (video, r"compressed as MPEG2 Main Profile .* \(1\.2\.840\..*\), which medcap cannot"),
    "too many pixels": (
        lambda: dicom(U8([[1]]), Rows=60000, Columns=60000),
        r"60000 x 60000 pixels are more than the \d+ allowed",
    ),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_unreadable_file_raises_one_line(tmp_path, make, message):
    path = file_of(make(), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=f"cannot read image .*a.dcm: {message}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "is_skipped"), [(without_pixels, True), (cut_ct, False)])
def test_an_incomplete_image_is_not_a_file_without_an_image(tmp_path, make, is_skipped):
    with pytest.raises(ValueError, match="a DICOM") as caught:
        read_image(file_of(make(), tmp_path / "a.dcm"))
    assert isinstance(caught.value.__cause__, NoImageError) is is_skipped


def test_missing_pydicom_raises_with_the_extra(tmp_path, monkeypatch):
    path = file_of(dicom(U8([[1]])), tmp_path / "a.dcm")
    genuine = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"DICOM files need pydicom: pip install .*\[dicom\]"):
        images.read_image(path)


def test_pillow_plugin_is_registered_by_reading_and_not_by_import(tmp_path):
    path = file_of(dicom(U8([[0, 200]]), WindowCenter=128, WindowWidth=256), tmp_path / "a.dcm")
    program = (
        "import sys; from PIL import Image; import medcap.data.images as images; "
        "assert 'DICOM' not in Image.OPEN; print(images.read_image(sys.argv[1]).size); assert 'DICOM' in Image.OPEN"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(2, 1)\n", 0), done.stderr
