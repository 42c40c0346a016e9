"""Windows of the modality and of the user; objects that are not images."""

import logging

import numpy as np
import pytest
from dicom_files import I16, U8, U16, dicom, file_of
from PIL import Image

from medcap.data.dicom_windows import parse_windows
from medcap.data.images import read_image

HU = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
CT = I16([[-2000, -160, 40, 240, 3000]])
COUNTS = U16([[0] + [100] * 998 + [60000]])

DEFAULT = {  # stored values, elements, expected shades
    "CT": (CT, HU, [0, 0, 128, 255, 255]),
    "CT that is not in Hounsfield units": (CT, {"Modality": "CT"}, [0, 94, 104, 114, 255]),
    "CT with another RescaleType": (CT, {**HU, "RescaleType": "Z_EFF"}, [0, 94, 104, 114, 255]),
    "CT with a window": (CT, {**HU, "WindowCenter": 0, "WindowWidth": 6001}, [43, 121, 129, 138, 255]),
    "MR": (CT, {**HU, "Modality": "MR"}, [0, 94, 104, 114, 255]),
    "NM with a hot pixel": (COUNTS, {"Modality": "NM"}, [0] + [255] * 999),
    "NM that is empty": (COUNTS[:, :1], {"Modality": "NM"}, [0]),
}


def shades(path, windows=()):
    return np.asarray(read_image(path, windows=windows))[0, :, 0].tolist()


@pytest.mark.parametrize(("stored", "elements", "expected"), DEFAULT.values(), ids=DEFAULT)
def test_modality_has_a_default_window(tmp_path, stored, elements, expected):
    assert shades(file_of(dicom(stored, **elements), tmp_path / "a.dcm")) == expected


NO_IMAGES = {
    "segmentation": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
    "dose": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"},
    "modality": {"Modality": "SEG"},
}


@pytest.mark.parametrize("elements", NO_IMAGES.values(), ids=NO_IMAGES)
def test_object_with_pixels_that_is_no_image_is_refused(tmp_path, elements):
    path = file_of(dicom(U8([[0, 1]]), **elements), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a.dcm: a DICOM file that is not an image \(.* Storage\)"):
        read_image(path)


WINDOWS = {
    "lung": [[0, 202, 236, 255, 255]] * 3,
    "40,400": [[0, 0, 128, 255, 255]] * 3,
    "lung,soft,bone": [[0, 202, 236, 255, 255], [0, 0, 128, 255, 255], [0, 48, 77, 105, 255]],
}


@pytest.mark.parametrize(("text", "expected"), WINDOWS.items(), ids=WINDOWS)
def test_window_of_the_user_replaces_that_of_the_file(tmp_path, text, expected):
    path = file_of(dicom(CT, **HU, WindowCenter=7, WindowWidth=7), tmp_path / "a.dcm")
    image = np.asarray(read_image(path, windows=parse_windows(text)))
    assert np.abs(image[0].T.astype(int) - expected).max() <= 1


def test_center_and_width_apply_to_every_modality(tmp_path):
    path = file_of(dicom(CT, Modality="MR"), tmp_path / "a.dcm")
    assert shades(path, parse_windows("40,400")) == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("text", ["lungs", "", "40", "40,0", "40,-1", "nan,40", "1,2,3", "lung,soft", "lung,1"])
def test_invalid_window_raises(text):
    with pytest.raises(
        ValueError, match=r"^window '.*': it can be a name, .*; names: brain, soft, liver, lung, bone$"
    ):
        parse_windows(text)


REFUSED = {
    "MR": (CT, {"Modality": "MR"}, "lung is in Hounsfield units, which only CT"),
    "color": (U8([[[1, 2, 3]]]), {}, "a window applies to grayscale"),
}


@pytest.mark.parametrize(("stored", "elements", "message"), REFUSED.values(), ids=REFUSED)
def test_window_that_does_not_apply_raises(tmp_path, stored, elements, message):
    path = file_of(dicom(stored, **elements), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=message):
        read_image(path, windows=parse_windows("lung"))


def test_window_of_another_image_raises(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: a window applies to DICOM files"):
        read_image(tmp_path / "a.png", windows=parse_windows("40,400"))


@pytest.mark.parametrize(("value", "warnings"), [("YES", 1), ("NO", 0)])
def test_text_in_the_pixels_is_warned_of_once(tmp_path, value, warnings, caplog):
    path = file_of(dicom(CT, BurnedInAnnotation=value, PatientName="Doe^Jane"), tmp_path / "a.dcm")
    with caplog.at_level(logging.WARNING, "medcap"):
        for _ in range(2):
            read_image(path)
    assert [record.getMessage().count("a.dcm: BurnedInAnnotation is YES") for record in caplog.records] == [
        1
    ] * warnings
    assert "Doe" not in caplog.text
