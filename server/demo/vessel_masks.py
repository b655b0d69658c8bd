"""The vessel masks of an invented MR export: DICOM SEG or NIfTI."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    SegmentationStorage,
)

from server.demo.export import Export, Person, uid
from server.demo.vessel_series import (
    Scan,
    new_object,
    new_path,
    orientation_text,
    position_text,
    save_object,
    spacing_text,
)

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_mask(export: Export, person: Person, scan: Scan, number: int, *, nifti: bool) -> str:
    """Write the mask as NIfTI or as DICOM SEG; return its name in the labels file.

    A DICOM SEG refers to its series, so its name there is empty.
    """
    if nifti:
        return _write_nifti(export, person, scan, number).name
    write_segmentation(export, person, scan)
    return ""


def write_segmentation(export: Export, person: Person, scan: Scan) -> Path:
    """Write the mask as one binary segment; slices without a vessel have no frame."""
    # refer to the series
    dataset = new_object(export, scan.head, SegmentationStorage)
    drawn_on = Dataset()
    drawn_on.SeriesInstanceUID = scan.head.SeriesInstanceUID
    dataset.ReferencedSeriesSequence = [drawn_on]
    dataset.SeriesInstanceUID = export.note(uid(export, "segmentation series"))

    # describe the content
    dataset.Modality = "SEG"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.InstanceNumber = 1
    dataset.ContentLabel = "VESSELS"
    dataset.ContentCreatorName = export.note(f"SEGMENTER-{export.tag}") + "^INVENTED"

    # describe the frames, and pack their bits
    depths = [d for d in range(len(scan.mask)) if scan.mask[d].any()]
    dataset.Rows, dataset.Columns = scan.mask.shape[1:]
    dataset.NumberOfFrames = len(depths)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 1
    dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "00"
    dataset.SegmentationType = "BINARY"
    dataset.SegmentSequence = [_segment()]
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(scan.affine)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(scan.affine, d) for d in depths]
    bits = np.packbits(scan.mask[depths].ravel() != 0, bitorder="little").tobytes()
    dataset.PixelData = bits + b"\0" * (len(bits) % 2)
    dataset["PixelData"].VR = "OB"
    return save_object(export, person, dataset)


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    """A sequence of one coded concept."""
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return [item]


def _segment() -> Dataset:
    """The description of the only segment."""
    segment = Dataset()
    segment.SegmentNumber = 1
    segment.SegmentLabel = "vessels"
    segment.SegmentAlgorithmType = "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = _code("91723000", "SCT", "Anatomical Structure")
    segment.SegmentedPropertyTypeCodeSequence = _code("59820001", "SCT", "Blood vessel")
    return segment


def _shared_groups(affine: NDArray[np.float64]) -> Dataset:
    """Orientation and pixel spacing of all frames."""
    measures = Dataset()
    turn = Dataset()
    shared = Dataset()
    measures.PixelSpacing = spacing_text(affine)
    measures.SliceThickness = "0.8"
    measures.SpacingBetweenSlices = "0.8"
    turn.ImageOrientationPatient = orientation_text(affine)
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [turn]
    return shared


def _frame(affine: NDArray[np.float64], depth: int) -> Dataset:
    """Place and segment of one frame."""
    place = Dataset()
    segment = Dataset()
    frame = Dataset()
    place.ImagePositionPatient = position_text(affine, depth)
    segment.ReferencedSegmentNumber = 1
    frame.PlanePositionSequence = [place]
    frame.SegmentIdentificationSequence = [segment]
    return frame


def _write_nifti(export: Export, person: Person, scan: Scan, number: int) -> Path:
    """Write the mask in RAS; the axes depend on `number`, and every second file is compressed."""
    import nibabel

    # flip the axes that the bits of `number` name, and swap two for odd numbers
    data = scan.mask.transpose(2, 1, 0)
    affine = RAS @ scan.affine
    for axis in range(3):
        if (number >> axis) & 1:
            back = np.eye(4)
            back[axis, axis] = -1
            back[axis, 3] = data.shape[axis] - 1
            data = np.flip(data, axis)
            affine = affine @ back
    if number % 2:
        data = data.transpose(1, 0, 2)
        affine = affine[:, [1, 0, 2, 3]]

    # write the file
    volume = np.ascontiguousarray(data)
    image: Any = nibabel.Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = export.note(f"mask of {person.patient_id}").encode()
    raw = image.to_bytes()
    ending = ".nii"
    if number % 2:
        ending = ".nii.gz"
        raw = gzip.compress(raw, 6, mtime=0)
    path = new_path(export, person, ending)
    path.write_bytes(raw)
    return path
