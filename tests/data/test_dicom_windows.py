"""Windows of the modality and of the user; objects that are not images."""

import numpy as np
import pytest
from dicom_files import I16, U8, U16, dicom, file_of

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


def shades(path):
    return np.asarray(read_image(path))[0, :, 0].tolist()


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
