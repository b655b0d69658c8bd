"""A made-up hospital's MR export for the demo, with known truth: series of slices, vessel masks, and what goes wrong.

In: phantom volumes (vessel_phantoms.py). Out: a folder of MR slices, DICOM SEG and NIfTI masks full of invented names, dates and
ids, a labels file, and `Truth`. Guaranteed: the same hospital index and volumes give the same bytes; every identifying string
stands in `Truth.identifiers`; no file's name or InstanceNumber says where its slice lies. Not covered: anything but test data;
conformance beyond what readers need (tests hold the reader against highdicom's segmentations).

Among the files: oblique grids; numbers that count backwards; rescaled, signed, MONOCHROME1 and run-length encoded slices; every
third mask as NIfTI with turned axes; one volume that stands under two patient ids; second scans; and broken series, one of each
kind.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SegmentationStorage,
)

from server.demo.fundus_hospitals import Export, Person, Truth, invented, uid

BROKEN = ("missing-slice", "no-mask", "mask-grid", "truncated", "not-dicom")
STORED = ("plain", "rescaled", "signed", "inverted", "run-length")
NIFTI_EVERY = 3
SECOND_SCANS = 2
LEVELS = 4000
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Volume(Protocol):
    """`image` [D, H, W] in [0, 1], `mask` [D, H, W] of 0 and 1."""

    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def mask(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Scan:
    """One series about to be written: pixels, mask, their place (LPS, mm; `affine` takes (w, h, d, 1)), and header."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    head: Dataset
    stored: str
    backwards: bool


def write_vessel_hospital(
    volumes: Sequence[Volume], out: Path, hospital_index: int, *, label: str = "vessels"
) -> Truth:
    """Write `out`/dicom and `out`/labels.csv, one person for each of `volumes`, and return the truth.

    `Truth.broken` counts the files of the broken series. Raises OSError when `out` cannot be written.
    """
    (out / "dicom").mkdir(parents=True)
    chance = random.Random(f"kohort demo vessel hospital {hospital_index}")
    export = Export(out / "dicom", chance, f"{hospital_index:02d}")
    rows = [("patient", "label", "mask")]
    for number, volume in enumerate(volumes):
        person = invented(export, "")
        scan = _scan(export, person, volume.image, volume.mask, number)
        _write_slices(export, person, scan)
        nifti = number % NIFTI_EVERY == 2
        rows.append(
            (person.patient_id, label, _write_mask(export, person, scan, number, nifti=nifti))
        )
        if not nifti and number % max(1, len(volumes) // SECOND_SCANS) == 0:
            again = _scan(export, person, _noisy(volume.image, chance), volume.mask, number + 1)
            _write_slices(export, person, again)
            _write_segmentation(export, person, again)
        if number == 0:
            alias = invented(export, "")
            rows.append((alias.patient_id, label, ""))
            copy = _scan(export, alias, volume.image, volume.mask, number)
            _write_slices(export, alias, copy)
            _write_segmentation(export, alias, copy)
    whole = export.files
    for kind in BROKEN:
        person = invented(export, "")
        rows.append((person.patient_id, label, ""))
        _write_broken(export, person, kind, volumes[-1])
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    secrets = tuple(dict.fromkeys(export.identifiers))
    broken = export.files - whole
    return Truth(
        out / "dicom",
        out / "labels.csv",
        len(volumes),
        export.files,
        broken,
        secrets,
        {label: len(volumes)},
    )


def _scan(
    export: Export, person: Person, image: NDArray[np.float32], mask: NDArray[np.uint8], number: int
) -> Scan:
    """A new series on an oblique grid of its own."""
    stored = STORED[number % len(STORED)]
    head = _header(export, person)
    return Scan(image, mask, _affine(export.chance), head, stored, backwards=number % 2 == 1)


def _affine(chance: random.Random) -> NDArray[np.float64]:
    """Half a millimetre in the plane, 0.8 between slices, turned by up to 12 degrees about each axis."""
    turn = np.eye(3)
    for axis in range(3):
        angle = np.deg2rad(chance.uniform(-12, 12))
        one, other = (a for a in range(3) if a != axis)
        plane = np.eye(3)
        plane[[one, one, other, other], [one, other, one, other]] = (
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        )  # fmt: skip
        turn = turn @ plane
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([0.5, 0.5, 0.8])
    affine[:3, 3] = [chance.uniform(-60, 60) for _ in range(3)]
    return affine


def _noisy(image: NDArray[np.float32], chance: random.Random) -> NDArray[np.float32]:
    """The same person, scanned again a little later."""
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, 0.02, image.shape)
    return np.clip(np.roll(image, 1, axis=2) + noise, 0, 1).astype(np.float32)


def _header(export: Export, person: Person) -> Dataset:
    """What all objects of one examination say, as talkative as real ones."""
    note = export.note
    head = Dataset()
    chance = export.chance
    head.StudyInstanceUID = note(uid(export, "study"))
    head.SeriesInstanceUID = note(uid(export, "series"))
    head.FrameOfReferenceUID = note(uid(export, "frame of reference"))
    head.PatientName = person.name
    head.PatientID = person.patient_id
    head.PatientBirthDate = person.birth_date
    head.PatientSex = chance.choice("FM")
    head.StudyDate = head.SeriesDate = head.ContentDate = head.AcquisitionDate = person.study_date
    head.StudyTime = head.ContentTime = f"{chance.randrange(8, 18):02d}{chance.randrange(60):02d}00"
    head.AccessionNumber = note(f"ACC{export.tag}{chance.randrange(10**9):09d}")
    head.StudyID = note(f"STU{export.tag}{chance.randrange(10**6):06d}")
    head.InstitutionName = note(f"Invented Stroke Unit {export.tag}")
    head.ReferringPhysicianName = note(f"REFERRER-{export.tag}") + "^INVENTED"
    head.PatientComments = note(f"lives next to the mill, phone 0555-{chance.randrange(10**7):07d}")
    head.SeriesDescription = note(f"TOF of {person.name}")
    head.DeviceSerialNumber = note(f"SN-{export.tag}-MR-{chance.randrange(10**5):05d}")
    head.Manufacturer = "Invented Magnets"
    return head


def _object(export: Export, head: Dataset, sop_class: UID) -> Dataset:
    """A new object of an examination."""
    dataset = Dataset()
    dataset.update(head)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(
        export.note(uid(export, "instance"))
    )
    return dataset


def _write_slices(export: Export, person: Person, scan: Scan) -> list[Path]:
    """One file a slice, in the order of the slices."""
    depth, height, width = scan.image.shape
    _, _, slope, intercept = _format(scan.stored)
    paths = []
    for d in range(depth):
        dataset = _object(export, scan.head, MRImageStorage)
        dataset.Modality = "MR"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "ANGIO", "NONE"]
        dataset.InstanceNumber = depth - d if scan.backwards else d + 1
        dataset.ImagePositionPatient = _position(scan.affine, d)
        dataset.ImageOrientationPatient = _orientation(scan.affine)
        dataset.PixelSpacing = _spacing(scan.affine)
        dataset.SliceThickness = dataset.SpacingBetweenSlices = "0.8"
        dataset.Rows = height
        dataset.Columns = width
        dataset.SamplesPerPixel = 1
        dataset.BitsAllocated = 16
        dataset.BitsStored = 12
        dataset.HighBit = 11
        dataset.PixelRepresentation = int(scan.stored == "signed")
        dataset.PhotometricInterpretation = (
            "MONOCHROME1" if scan.stored == "inverted" else "MONOCHROME2"
        )
        dataset.RescaleSlope = slope
        dataset.RescaleIntercept = intercept
        dataset.RescaleType = "US"
        dataset.PixelData = _stored(scan.image[d], scan.stored).tobytes()
        dataset["PixelData"].VR = "OW"
        if scan.stored == "run-length":
            dataset.compress(RLELossless, generate_instance_uid=False)
        paths.append(_save(export, person, dataset))
    return paths


def _format(stored: str) -> tuple[int, str, str, str]:
    """Offset and type of the stored values, slope and intercept."""
    return {"rescaled": (0, "<u2", "0.5", "-10"), "signed": (-2000, "<i2", "1", "2000")}.get(
        stored, (0, "<u2", "1", "0")
    )


def _stored(plane: NDArray[np.float32], stored: str) -> NDArray[Any]:
    """Levels 0 to 4000 as the series stores them."""
    offset, kind, _, _ = _format(stored)
    levels = np.rint(plane * LEVELS).astype(np.int64)
    return (LEVELS - levels if stored == "inverted" else levels + offset).astype(kind)


def _position(affine: NDArray[np.float64], depth: float) -> list[str]:
    return [f"{v:.6f}" for v in affine[:3, 3] + depth * affine[:3, 2]]


def _orientation(affine: NDArray[np.float64]) -> list[str]:
    cosines = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
    return [f"{v:.8f}" for v in cosines.ravel()]


def _spacing(affine: NDArray[np.float64]) -> list[str]:
    """Between rows, between columns."""
    return [f"{v:.6f}" for v in np.linalg.norm(affine[:3, [1, 0]], axis=0)]


def _save(export: Export, person: Person, dataset: Dataset) -> Path:
    path = _new_path(export, person, ".dcm")
    dataset.save_as(path, enforce_file_format=True)
    return path


def _new_path(export: Export, person: Person, ending: str) -> Path:
    """A name that gives its person away, and not the order."""
    family = person.name.replace("^", "_")
    while True:
        path = (
            export.folder
            / f"{family}_{person.birth_date}_{export.chance.randrange(10**7):07d}{ending}"
        )
        if not path.exists():
            export.note(path.name)
            export.files += 1
            return path


def _write_mask(export: Export, person: Person, scan: Scan, number: int, *, nifti: bool) -> str:
    """The mask as NIfTI, whose name the labels file needs, or as DICOM SEG, which needs none."""
    if nifti:
        return _write_nifti(export, person, scan, number).name
    _write_segmentation(export, person, scan)
    return ""


def _write_segmentation(export: Export, person: Person, scan: Scan) -> Path:
    """One binary segment; slices without a vessel have no frame."""
    dataset = _object(export, scan.head, SegmentationStorage)
    drawn_on = Dataset()
    drawn_on.SeriesInstanceUID = scan.head.SeriesInstanceUID
    dataset.ReferencedSeriesSequence = [drawn_on]
    dataset.SeriesInstanceUID = export.note(uid(export, "segmentation series"))
    dataset.Modality = "SEG"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.InstanceNumber = 1
    dataset.ContentLabel = "VESSELS"
    dataset.ContentCreatorName = export.note(f"SEGMENTER-{export.tag}") + "^INVENTED"
    depths = [d for d in range(len(scan.mask)) if scan.mask[d].any()]
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *scan.mask.shape[1:], len(depths)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 1
    dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "00"
    dataset.SegmentationType = "BINARY"
    dataset.SegmentSequence = [_segment()]
    dataset.SharedFunctionalGroupsSequence = [_shared(scan.affine)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(scan.affine, d) for d in depths]
    bits = np.packbits(scan.mask[depths].ravel() != 0, bitorder="little").tobytes()
    dataset.PixelData = bits + b"\0" * (len(bits) % 2)
    dataset["PixelData"].VR = "OB"
    return _save(export, person, dataset)


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return [item]


def _segment() -> Dataset:
    segment = Dataset()
    segment.SegmentNumber = 1
    segment.SegmentLabel = "vessels"
    segment.SegmentAlgorithmType = "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = _code("91723000", "SCT", "Anatomical Structure")
    segment.SegmentedPropertyTypeCodeSequence = _code("59820001", "SCT", "Blood vessel")
    return segment


def _shared(affine: NDArray[np.float64]) -> Dataset:
    """Orientation and pixel spacing of all frames."""
    measures = Dataset()
    turn = Dataset()
    shared = Dataset()
    measures.PixelSpacing = _spacing(affine)
    measures.SliceThickness = "0.8"
    measures.SpacingBetweenSlices = "0.8"
    turn.ImageOrientationPatient = _orientation(affine)
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [turn]
    return shared


def _frame(affine: NDArray[np.float64], depth: int) -> Dataset:
    """Place and segment of one frame."""
    place = Dataset()
    segment = Dataset()
    frame = Dataset()
    place.ImagePositionPatient = _position(affine, depth)
    segment.ReferencedSegmentNumber = 1
    frame.PlanePositionSequence = [place]
    frame.SegmentIdentificationSequence = [segment]
    return frame


def _write_nifti(export: Export, person: Person, scan: Scan, number: int) -> Path:
    """The mask in RAS, with axes turned in one of several ways, compressed for every second one."""
    import nibabel

    data = scan.mask.transpose(2, 1, 0)
    affine = RAS @ scan.affine
    for axis in range(3):
        if (number >> axis) & 1:
            back = np.eye(4)
            back[axis, axis], back[axis, 3] = -1, data.shape[axis] - 1
            data = np.flip(data, axis)
            affine = affine @ back
    if number % 2:
        data = data.transpose(1, 0, 2)
        affine = affine[:, [1, 0, 2, 3]]
    image: Any = nibabel.Nifti1Image(np.ascontiguousarray(data), affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = export.note(f"mask of {person.patient_id}").encode()
    raw = image.to_bytes()
    path = _new_path(export, person, ".nii.gz" if number % 2 else ".nii")
    path.write_bytes(gzip.compress(raw, 6, mtime=0) if number % 2 else raw)
    return path


def _write_broken(export: Export, person: Person, kind: str, volume: Volume) -> None:
    """One series that cannot be used, for the reason that `kind` names. Turned pixels: nobody else's."""
    if kind == "not-dicom":
        _new_path(export, person, ".log").write_bytes(f"export log of {person.name}\n".encode())
        return
    turned = BROKEN.index(kind)
    image = np.ascontiguousarray(np.rot90(volume.image[::-1], turned, axes=(1, 2)))
    scan = _scan(
        export,
        person,
        image,
        np.ascontiguousarray(np.rot90(volume.mask[::-1], turned, axes=(1, 2))),
        0,
    )
    slices = _write_slices(export, person, scan)
    if kind == "missing-slice":
        slices[len(slices) // 2].unlink()
        export.files -= 1
    elif kind == "truncated":
        slices[1].write_bytes(slices[1].read_bytes()[: -image[1].size])  # half of its pixels
    if kind == "mask-grid":
        moved = scan.affine.copy()
        moved[:3, 3] += 3.0
        _write_segmentation(export, person, replace(scan, affine=moved))
    elif kind != "no-mask":
        _write_segmentation(export, person, scan)
