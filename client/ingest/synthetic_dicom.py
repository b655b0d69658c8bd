"""Writes a privatized image as a DICOM file that states that it is synthetic.

In: uint8 pixels, the modality, the privacy statement.
Out: a Secondary Capture object with SyntheticData = YES.
Guarantees: nothing of the original file enters, because none is passed in: fresh UIDs, a patient
called SYNTHETIC, no dates.
Not covered: whether the image may leave (client/egress/gate.py).

DICOM PS3.3 C.7.6.1.1.6 (Synthetic Data), A.8.1 (Secondary Capture Image).
"""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from common.arrays import Pixels

SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
EMPTY = (
    "PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName SeriesNumber InstanceNumber PatientOrientation"
).split()
TEXT_CAP = 1024  # of DerivationDescription (ST)


def write_synthetic(pixels: Pixels, modality: str, statement: str) -> bytes:
    """Return DICOM bytes (explicit VR little endian) of uint8 [H, W, 1 or 3].

    `statement` becomes the DerivationDescription.
    """
    # identity: fresh UIDs, an invented patient, and empty what the standard asks for
    height, width, channels = pixels.shape
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SECONDARY_CAPTURE
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(prefix=None)
    data.StudyInstanceUID = generate_uid(prefix=None)
    data.SeriesInstanceUID = generate_uid(prefix=None)
    data.SpecificCharacterSet = "ISO_IR 192"
    data.PatientName = data.PatientID = "SYNTHETIC"
    for empty in EMPTY:
        setattr(data, empty, None)

    # what it is: a synthetic, derived image
    data.Modality = modality
    data.ConversionType = "SYN"
    data.Manufacturer = "kohort"
    data.SyntheticData = "YES"
    data.BurnedInAnnotation = "NO"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = statement[:TEXT_CAP]

    # the pixels: 8 bits, grey or RGB, padded to an even length
    data.Rows = height
    data.Columns = width
    data.SamplesPerPixel = channels
    data.PhotometricInterpretation = "RGB"
    if channels == 1:
        data.PhotometricInterpretation = "MONOCHROME2"
    if channels == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelRepresentation = 0
    raw = np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB"

    # the file
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
