"""The MR series of an invented export: an oblique grid, its slices, and their file names."""

from __future__ import annotations

import random
from dataclasses import dataclass
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
)

from server.demo.export import Export, Person, uid

LEVELS = 4000


class Volume(Protocol):
    """`image` [D, H, W] in [0, 1], `mask` [D, H, W] of 0 and 1."""

    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def mask(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Scan:
    """One series before it is written: pixels, mask, place and header.

    `affine` maps (w, h, d, 1) to LPS coordinates in mm.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    head: Dataset
    stored: str
    backwards: bool


def oblique_affine(chance: random.Random) -> NDArray[np.float64]:
    """Return a grid of 0.5 mm in the plane and 0.8 mm between slices.

    It is turned by up to 12 degrees about each axis.
    """
    # turn about each axis by a small angle
    turn = np.eye(3)
    for axis in range(3):
        angle = np.deg2rad(chance.uniform(-12, 12))
        one, other = (a for a in range(3) if a != axis)
        plane = np.eye(3)
        plane[one, one] = np.cos(angle)
        plane[one, other] = -np.sin(angle)
        plane[other, one] = np.sin(angle)
        plane[other, other] = np.cos(angle)
        turn = turn @ plane

    # scale to millimetres, and put the origin somewhere
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([0.5, 0.5, 0.8])
    affine[:3, 3] = [chance.uniform(-60, 60) for _ in range(3)]
    return affine


def write_header(export: Export, person: Person) -> Dataset:
    """Return the header of all objects of one examination, as identifying as a real one."""
    note = export.note
    chance = export.chance

    # the examination and the person
    head = Dataset()
    head.StudyInstanceUID = note(uid(export, "study"))
    head.SeriesInstanceUID = note(uid(export, "series"))
    head.FrameOfReferenceUID = note(uid(export, "frame of reference"))
    head.PatientName = person.name
    head.PatientID = person.patient_id
    head.PatientBirthDate = person.birth_date
    head.PatientSex = chance.choice("FM")
    head.StudyDate = head.SeriesDate = head.ContentDate = head.AcquisitionDate = person.study_date
    head.StudyTime = head.ContentTime = f"{chance.randrange(8, 18):02d}{chance.randrange(60):02d}00"

    # what else identifies
    head.AccessionNumber = note(f"ACC{export.tag}{chance.randrange(10**9):09d}")
    head.StudyID = note(f"STU{export.tag}{chance.randrange(10**6):06d}")
    head.InstitutionName = note(f"Invented Stroke Unit {export.tag}")
    head.ReferringPhysicianName = note(f"REFERRER-{export.tag}") + "^INVENTED"
    head.PatientComments = note(f"lives next to the mill, phone 0555-{chance.randrange(10**7):07d}")
    head.SeriesDescription = note(f"TOF of {person.name}")
    head.DeviceSerialNumber = note(f"SN-{export.tag}-MR-{chance.randrange(10**5):05d}")
    head.Manufacturer = "Invented Magnets"
    return head


def new_object(export: Export, head: Dataset, sop_class: UID) -> Dataset:
    """Return a new object of an examination, without pixels."""
    dataset = Dataset()
    dataset.update(head)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(
        export.note(uid(export, "instance"))
    )
    return dataset


def write_slices(export: Export, person: Person, scan: Scan) -> list[Path]:
    """Write one file for each slice; return the paths in the order of the slices."""
    depth, height, width = scan.image.shape
    _, _, slope, intercept = _format(scan.stored)
    paths = []
    for d in range(depth):
        # where the slice lies
        dataset = new_object(export, scan.head, MRImageStorage)
        dataset.Modality = "MR"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "ANGIO", "NONE"]
        dataset.InstanceNumber = depth - d if scan.backwards else d + 1
        dataset.ImagePositionPatient = position_text(scan.affine, d)
        dataset.ImageOrientationPatient = orientation_text(scan.affine)
        dataset.PixelSpacing = spacing_text(scan.affine)
        dataset.SliceThickness = dataset.SpacingBetweenSlices = "0.8"

        # how its values are stored
        dataset.Rows = height
        dataset.Columns = width
        dataset.SamplesPerPixel = 1
        dataset.BitsAllocated = 16
        dataset.BitsStored = 12
        dataset.HighBit = 11
        dataset.PixelRepresentation = int(scan.stored == "signed")
        dataset.PhotometricInterpretation = "MONOCHROME2"
        if scan.stored == "inverted":
            dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.RescaleSlope = slope
        dataset.RescaleIntercept = intercept
        dataset.RescaleType = "US"

        # its pixels
        dataset.PixelData = to_stored(scan.image[d], scan.stored).tobytes()
        dataset["PixelData"].VR = "OW"
        if scan.stored == "run-length":
            dataset.compress(RLELossless, generate_instance_uid=False)
        paths.append(save_object(export, person, dataset))
    return paths


def _format(stored: str) -> tuple[int, str, str, str]:
    """Offset and type of the stored values, slope and intercept."""
    return {"rescaled": (0, "<u2", "0.5", "-10"), "signed": (-2000, "<i2", "1", "2000")}.get(
        stored, (0, "<u2", "1", "0")
    )


def to_stored(plane: NDArray[np.float32], stored: str) -> NDArray[Any]:
    """Return a plane in [0, 1] as levels 0 to 4000, as the series stores them."""
    offset, kind, _, _ = _format(stored)
    levels = np.rint(plane * LEVELS).astype(np.int64)
    if stored == "inverted":
        return (LEVELS - levels).astype(kind)
    return (levels + offset).astype(kind)


def position_text(affine: NDArray[np.float64], depth: float) -> list[str]:
    """Return the slice's ImagePositionPatient."""
    return [f"{v:.6f}" for v in affine[:3, 3] + depth * affine[:3, 2]]


def orientation_text(affine: NDArray[np.float64]) -> list[str]:
    """Return the grid's ImageOrientationPatient."""
    cosines = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
    return [f"{v:.8f}" for v in cosines.ravel()]


def spacing_text(affine: NDArray[np.float64]) -> list[str]:
    """Return the grid's PixelSpacing: between rows, between columns."""
    return [f"{v:.6f}" for v in np.linalg.norm(affine[:3, [1, 0]], axis=0)]


def save_object(export: Export, person: Person, dataset: Dataset) -> Path:
    """Write the object under a new name; return its path."""
    path = new_path(export, person, ".dcm")
    dataset.save_as(path, enforce_file_format=True)
    return path


def new_path(export: Export, person: Person, ending: str) -> Path:
    """Return a free path whose name tells the person, as in real exports, but not the order."""
    family = person.name.replace("^", "_")
    while True:
        number = f"{export.chance.randrange(10**7):07d}"
        path = export.folder / f"{family}_{person.birth_date}_{number}{ending}"
        if not path.exists():
            export.note(path.name)
            export.files += 1
            return path
