"""Tags that identify a patient are neither in images nor in messages."""

import io
import logging

import numpy as np
import pydicom
import pytest
from dicom_files import SECRETS, U8, compressed, dicom, file_of, read_error, with_secrets
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medcap.data.images import read_image


@pytest.mark.parametrize("cut", [0, 1, 40, 200, 330])
@pytest.mark.parametrize("elements", [{}, {"Rows": 99}, {"PhotometricInterpretation": "WHAT"}], ids=str)
def test_patient_tags_are_not_in_image_or_messages(tmp_path, elements, cut, capfd, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    with pydicom.config.disable_value_validation():
        content = file_of(with_secrets(**elements), tmp_path / "a.dcm").read_bytes()
    assert all(secret.encode() in content for secret in SECRETS)
    (tmp_path / "a.dcm").write_bytes(content[: len(content) - cut])
    messages = ""
    try:
        image = read_image(tmp_path / "a.dcm")
        assert not image.info
    except ValueError as error:
        messages = repr(error) + repr(error.__cause__)
    messages += caplog.text + "".join(str(warning.message) for warning in recwarn) + "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret in messages]


TAGS = {  # pixel tags that contain a name
    "SOPClassUID": {"SOPClassUID": SECRETS[0], "Rows": 0},
    "PhotometricInterpretation": {"PhotometricInterpretation": SECRETS[0]},
    "VOILUTFunction": {"VOILUTFunction": SECRETS[0], "WindowCenter": 5, "WindowWidth": 5},
    "PresentationLUTShape": {"PresentationLUTShape": SECRETS[0]},
    "RescaleType": {"RescaleType": SECRETS[0], "RescaleSlope": 1, "RescaleIntercept": 0},
}


@pytest.mark.parametrize("elements", TAGS.values(), ids=TAGS)
def test_pixel_tags_are_not_quoted(tmp_path, elements, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with pydicom.config.disable_value_validation():
        path = file_of(dicom(U8([[0, 255]]), **elements), tmp_path / "a.dcm")
        assert SECRETS[0].encode() in path.read_bytes()
    assert SECRETS[0] not in read_error(path) + caplog.text + "".join(capfd.readouterr())


def test_invalid_number_of_frames_is_not_quoted(tmp_path):
    path = file_of(dicom(U8([[0, 255]]), NumberOfFrames=111111111111), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"111111111111", b"Doe^Jane1970"))
    assert "NumberOfFrames is not an integer" in read_error(path)
    assert "Doe" not in read_error(path)


def test_invalid_transfer_syntax_is_not_quoted(tmp_path):
    with pydicom.config.disable_value_validation():
        path = file_of(dicom(U8([[0, 255]])), tmp_path / "a.dcm")
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"Doe^Jane 1970-01-01 "))
    assert "cannot read image" in read_error(path)
    assert "Doe" not in read_error(path)


def test_saved_image_has_no_tags(tmp_path):
    image = read_image(file_of(with_secrets(), tmp_path / "a.dcm"))
    image.save(buffer := io.BytesIO(), "PNG")
    assert not [secret for secret in SECRETS if secret.encode() in buffer.getvalue()]


QUOTED = (
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated "
    "BitsStored PixelRepresentation PixelPaddingValue RescaleSlope RescaleIntercept WindowCenter WindowWidth "
    "VOILUTFunction PresentationLUTShape ModalityLUTSequence VOILUTSequence PerFrameFunctionalGroupsSequence "
    "SpecificCharacterSet"
).split()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=str)
@pytest.mark.parametrize("name", QUOTED)
def test_text_in_a_pixel_tag_is_not_quoted(tmp_path, name, syntax, capfd, caplog, recwarn):
    data = dicom(np.arange(4096, dtype=U8).reshape(64, 64), WindowCenter=30, WindowWidth=20)
    if syntax.is_encapsulated:
        compressed(data, syntax)
    data.add_new(name, "LO", "Doe^Jane 1970")
    path, vr = file_of(data, tmp_path / "a.dcm"), pydicom.datadict.dictionary_VR(name).encode()
    recwarn.clear()  # messages of writing the file
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    lo = path.read_bytes()
    assert lo.count(b"LO\x0e\0Doe^Jane 1970 ") == 1
    for content in (lo, lo.replace(b"LO\x0e\0Doe", vr + b"\x0e\0Doe")):  # with the wrong and the correct VR
        path.write_bytes(content)
        messages = read_error(path) + caplog.text + "".join(capfd.readouterr())
        assert "Doe" not in messages + "".join(str(warning.message) for warning in recwarn)
