"""Write and read DICOM files in tests."""

import traceback

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medcap.data.images import read_image

SECRETS = ("Secret^Person", "PID-4711", "19010203", "not-a-date", "St. Nowhere", "9.9.9.bad-uid")


def sequence(**elements):
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]


def dicom(pixels, syntax=ExplicitVRLittleEndian, **elements):
    """A file with stored values of shape (H, W), (H, W, 3) or (frames, H, W)."""
    pixels = np.asarray(pixels)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    is_color = pixels.ndim == 3 and pixels.shape[2] == 3
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if is_color else (1, "MONOCHROME2")
    if is_color:
        data.PlanarConfiguration = 0
    if pixels.ndim == 3 and not is_color:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:2] if is_color else pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def encapsulated(data, syntax, *streams):
    """The file with compressed frames."""
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate(list(streams))
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return data


def compressed(data, syntax):
    """The file, compressed without loss."""
    if syntax == RLELossless:
        data.compress(syntax)
        return data
    encode = {JPEG2000Lossless: lossless_jpeg_2000, JPEGLSLossless: lossless_jpeg_ls}[syntax]
    frames = data.pixel_array if int(data.get("NumberOfFrames", 1)) > 1 else [data.pixel_array]
    return encapsulated(data, syntax, *map(encode, frames))


def lossless_jpeg_2000(pixels, **options):
    return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, **options)


def lossless_jpeg_ls(pixels):
    """Encode with room for noise, which JPEG-LS makes longer."""
    return bytes(imagecodecs.jpegls_encode(pixels, out=2 * pixels.nbytes + 1024))


def file_of(data, path):
    data.save_as(path, enforce_file_format=True)
    return path


U8, U16, I16 = np.uint8, np.uint16, np.int16


def with_secrets(**elements):
    data = dicom(U8([[0, 255]]), PatientName=SECRETS[0], PatientID=SECRETS[1], PatientBirthDate=SECRETS[2], **elements)
    with pydicom.config.disable_value_validation():
        data.StudyDate, data.InstitutionName, data.StudyInstanceUID = SECRETS[3:]
        data.AcquisitionDate = SECRETS[0]
    return data


def read_error(path):
    """The traceback of reading the file, or an empty string."""
    try:
        read_image(path)
    except ValueError as error:
        return "".join(traceback.format_exception(error))
    return ""
