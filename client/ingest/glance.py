"""Looks at one file without its pixels: what it is, and whose. Run by the decoding child.

In: a path. Out: a `Glance`, or `Unusable` with a reason.
Guarantees: those of dicom_header.py and files.py; no pixel is decoded.
Not covered: whether the pixels can be decoded.
"""

from __future__ import annotations

from typing import BinaryIO

from client.ingest.dicom import SIDES
from client.ingest.dicom_header import STUDY, bound_inflation, read_header, text_of
from client.ingest.files import open_regular
from client.ingest.masks import is_nifti
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Glance, Settings
from client.ingest.stills import READ, kind_of


def glance(path: str, settings: Settings) -> Glance:
    """Return what a file shows without its pixels; raises Unusable."""
    with open_regular(path, settings.max_file_bytes) as file:
        head = file.read(132)
        if head[128:] == b"DICM":
            return _read_header(file, settings)
        if kind_of(head) in READ:
            return Glance("photograph")
        if is_nifti(file):
            return Glance("nifti")
    raise Unusable(Reason.UNKNOWN_FORMAT)


def _read_header(file: BinaryIO, settings: Settings) -> Glance:
    """Return whose a DICOM image of the study's modalities is."""
    try:
        bound_inflation(file, settings.max_pixel_bytes)
        header = read_header(file, pixels=False, more=("SeriesInstanceUID",))
        if "Rows" not in header:
            raise Unusable(Reason.NOT_AN_IMAGE)
        if text_of(header, "Modality") not in settings.modalities:
            raise Unusable(Reason.WRONG_MODALITY)
        side = SIDES.get(text_of(header, "ImageLaterality") or text_of(header, "Laterality"), 0)
        return Glance(
            "dicom",
            text_of(header, "PatientID"),
            side,
            text_of(header, "SeriesInstanceUID"),
            text_of(header, "IssuerOfPatientID"),
            text_of(header, STUDY),
        )
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # pydicom reads a value when it is asked for, and raises anything
        raise Unusable(Reason.DAMAGED_HEADER) from error
