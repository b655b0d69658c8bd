"""Reads and checks the header of a DICOM file, before a pixel is read.

In: an open file.
Out: the attributes of an allow-list, or `Unusable` with a reason.
Guarantees: no `force`; only ALLOWED attributes, STUDY and those that a caller names are parsed (no
dates, names, free text, private tags, overlays, icons or preamble); every bound holds before pixels
are read.
Not covered: what else an image must be (origin.py, content.py, text_detector.py).

  1. bound: a deflated data set may not inflate beyond the cap
  2. header: allow-listed attributes, without pixels
  3. rules: modality, photometric interpretation, bits, decoder
  4. size: rows x columns x frames x samples x bytes
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from client.ingest.codecs import is_readable
from client.ingest.quarantine import Reason, Unusable

# a bad value is judged here, where it is needed, and not warned about with its text
config.settings.reading_validation_mode = config.IGNORE

ALLOWED = (
    "PatientID IssuerOfPatientID Modality ImageType BurnedInAnnotation SyntheticData "
    "ConversionType SecondaryCaptureDeviceID SecondaryCaptureDeviceManufacturer "
    "SecondaryCaptureDeviceSoftwareVersions HardcopyCreationDeviceID HardcopyDeviceManufacturer "
    "VideoImageFormatAcquired DigitalImageFormatAcquired "
    "BodyPartExamined AnatomicRegionSequence ViewPosition ViewCodeSequence PatientOrientation "
    "PresentationIntentType ContrastBolusAgent ImageLaterality Laterality Rows Columns "
    "NumberOfFrames SamplesPerPixel PhotometricInterpretation "
    "PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit RescaleSlope RescaleIntercept ModalityLUTSequence WindowCenter "
    "WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
).split()
STUDY = "StudyInstanceUID"  # the one UID that is read: it becomes a keyed hash and is dropped
GREY = {"MONOCHROME1", "MONOCHROME2"}
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"}
DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_ID_CHARACTERS = 256  # the standard says 64


def bound_inflation(file: BinaryIO, max_bytes: int) -> None:
    """Inflate a deflated data set piece by piece, keeping nothing.

    Raises Unusable (declared-too-large) when it passes the cap. Other data sets are left alone.
    """
    # the transfer syntax stands in the meta group
    file.seek(132)  # behind the preamble and DICM
    group_length = file.read(12)  # (0002,0000): the size of the rest of the meta group
    meta = file.read(min(int.from_bytes(group_length[8:], "little"), 1 << 16))
    if DEFLATED not in meta:
        return

    # at most 1 MiB at a time; what does not fit into it is inflated next
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    piece = file.read(1 << 16)
    while piece and not inflater.eof:
        total += len(inflater.decompress(piece, 1 << 20))
        piece = inflater.unconsumed_tail or file.read(1 << 16)
        # refuse as soon as the cap is passed
        if total > max_bytes:
            raise Unusable(Reason.DECLARED_TOO_LARGE)


def read_header(file: BinaryIO, *, pixels: bool, more: Sequence[str] = ()) -> Dataset:
    """Return the allow-listed attributes and those in `more`, with or without the pixel data."""
    file.seek(0)
    tags: list[Any] = [*ALLOWED, STUDY, *more, "PixelData"]
    return dcmread(file, stop_before_pixels=not pixels, specific_tags=tags)


def text_of(header: Dataset, name: str) -> str:
    """Return one short text value; absent, several or overlong ones count as empty."""
    value = header.get(name, "")
    if isinstance(value, str) and len(value) <= MAX_ID_CHARACTERS:
        return value
    return ""


def number_of(header: Dataset, name: str, default: int = 0) -> int:
    """Return one whole number; a missing or empty value is the default."""
    value = header.get(name)
    if value is None or value == "":
        return default
    return int(value)


def numbers_of(header: Dataset, name: str) -> tuple[float, ...]:
    """Return all numbers of an attribute; what is none becomes NaN, an absent one nothing."""
    try:
        value = header.get(name)
        if value is None or value == "":
            return ()
        return tuple(float(number) for number in np.ravel(value))
    except (ValueError, TypeError, OverflowError):
        return (math.nan,)


def count_frames(header: Dataset) -> int:
    """Return NumberOfFrames; none, an empty one and zero mean one frame."""
    return number_of(header, "NumberOfFrames", 1) or 1


def check_rules(header: Dataset, modalities: tuple[str, ...]) -> None:
    """Check modality, pixel format and decoder.

    Raises Unusable, with a reason for each.
    """
    if "PhotometricInterpretation" not in header or "Rows" not in header:
        raise Unusable(Reason.NOT_AN_IMAGE)
    if text_of(header, "Modality") not in modalities:
        raise Unusable(Reason.WRONG_MODALITY)
    _check_pixel_format(header)

    # a decoder must be installed for the transfer syntax
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax or not is_readable(syntax):
        raise Unusable(Reason.UNSUPPORTED_TRANSFER_SYNTAX)


def _check_pixel_format(header: Dataset) -> None:
    """Refuse all but 2 to 16 bit integers, grey, palette or colour, in their lowest bits."""
    # samples a pixel follow from the photometric interpretation; others are unknown
    samples = {**dict.fromkeys(GREY | {"PALETTE COLOR"}, 1), **dict.fromkeys(COLOUR, 3)}
    expected = samples.get(text_of(header, "PhotometricInterpretation"))
    if expected is None:
        raise Unusable(Reason.PHOTOMETRIC)
    if expected != number_of(header, "SamplesPerPixel"):
        raise Unusable(Reason.SAMPLES)
    # as many bits as are read, from the lowest one on
    stored = number_of(header, "BitsStored")
    allocated = number_of(header, "BitsAllocated")
    if allocated not in (8, 16) or not 1 < stored <= allocated:
        raise Unusable(Reason.BITS)
    if number_of(header, "HighBit", stored - 1) != stored - 1:
        raise Unusable(Reason.HIGH_BIT)


def check_size(header: Dataset, max_bytes: int) -> None:
    """Check the declared size, from the header alone, before a pixel is read.

    Raises Unusable (declared-too-large, no-size, damaged-header).
    """
    try:
        factors = [number_of(header, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel")]
        factors.append(count_frames(header))
        size = number_of(header, "BitsAllocated") // 8
    except MemoryError:
        raise
    except Exception as error:  # pydicom reads a value when it is asked for, and raises anything
        raise Unusable(Reason.DAMAGED_HEADER) from error
    # Python's integers do not overflow
    for factor in factors:
        size *= factor
    if min(factors) < 1:
        raise Unusable(Reason.NO_SIZE)
    if size > max_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
