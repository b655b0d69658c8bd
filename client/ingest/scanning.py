"""Says what one file of a study of volumes is, from its header: a slice, a segmentation, a mask.

In: the path of one file.
Out: a `Scan`.
Guarantees: no pixel is decoded; what is no part of a volume has its reason.
Not covered: whether slices make a volume (volumes.py), whose it is (link.py).
"""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

from pydicom.dataset import Dataset

from client.ingest import dicom_header, frames
from client.ingest.files import open_regular
from client.ingest.masks import SEGMENTATION, content_of, is_nifti
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps, Kind, Scan
from client.ingest.stills import kind_of

# these tell series apart and are dropped
SERIES = ("SeriesInstanceUID", "FrameOfReferenceUID", "ReferencedSeriesSequence")
MOST_REFERENCES = 16  # series that a segmentation may name; of more, none counts


def scan(path: str, caps: Caps) -> Scan:
    """Return what the file at `path` states of itself.

    Raises Unusable when it is no part of a volume.
    """
    with open_regular(path, caps.max_file_bytes) as file:
        head = file.read(132)
        if head[128:] == b"DICM":
            return _scan_dicom(file, caps)
        if kind_of(head) is not None:
            raise Unusable(Reason.NOT_A_VOLUME)
        if is_nifti(file):
            return Scan("nifti", _content(file))
    raise Unusable(Reason.UNKNOWN_FORMAT)


def _content(file: BinaryIO) -> str:
    """SHA-256 of a whole file, in hex."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _scan_dicom(file: BinaryIO, caps: Caps) -> Scan:
    """A slice or a segmentation, by its header alone. Raises Unusable."""
    try:
        # the allow-listed attributes, and those that place a slice or a segmentation
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        more = (*SERIES, *frames.ATTRIBUTES)
        header = dicom_header.read_header(file, pixels=False, more=more)

        # the series: for a segmentation the one that it was drawn on
        kind: Kind
        if header.get("SOPClassUID") in SEGMENTATION:
            kind = "segmentation"
            series = _series_drawn_on(header)
        else:
            kind = "slice"
            frames.frames_of(header, caps)
            series = dicom_header.text_of(header, "SeriesInstanceUID")
            if not series:
                raise Unusable(Reason.NO_SERIES)

        # whose it is
        patient_id = dicom_header.text_of(header, "PatientID")
        issuer = dicom_header.text_of(header, "IssuerOfPatientID")
        frame = dicom_header.text_of(header, "FrameOfReferenceUID")
        content = _content(file)
        if kind == "segmentation":
            content = _content_of_marks(file, caps, (patient_id, issuer, series, frame)) or content
        study = dicom_header.text_of(header, dicom_header.STUDY)
        return Scan(kind, content, patient_id, issuer, series, frame, study)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED_HEADER) from error


def _content_of_marks(file: BinaryIO, caps: Caps, whose: tuple[str, ...]) -> str:
    """SHA-256 of a segmentation's marks and whose they are, in hex; empty if it is damaged."""
    try:
        marks = content_of(file, caps.max_pixel_bytes)
    except MemoryError:
        raise
    except Exception:  # the fault is named where the mask is used
        return ""
    return hashlib.sha256(repr((marks, whose)).encode()).hexdigest()


def _series_drawn_on(header: Dataset) -> str:
    """The UIDs of the series that a segmentation references, with a backslash between them."""
    references: Any = header.get("ReferencedSeriesSequence") or ()
    if len(references) > MOST_REFERENCES:
        return ""
    named = [dicom_header.text_of(item, "SeriesInstanceUID") for item in references]
    return "\\".join(sorted({uid for uid in named if uid}))
