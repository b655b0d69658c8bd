"""Writes an invented hospital's DICOM export of chest radiographs, with known truth.

In: small public radiographs (uint8) with their label, given to invented people.
Out: a folder of DX and CR files, a labels file, and `Truth`.
Guarantees: the same hospital index and people give the same bytes; every identifying string stands
in `Truth.identifiers`.
Not covered: anything but test data; detail that the crops of 28 pixels do not have.

The files differ as those of real hospitals do: six kinds of stored values (`STORED`), people with
several radiographs, one radiograph under two patient ids, broken files (`BROKEN`).
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)

from common.arrays import Pixels
from server.demo.export import Export, Person, Truth, invent_person, uid, write_labels

ENLARGED = 4
SECOND_EXPOSURES = 6
BROKEN = (
    "not-dicom",
    "truncated",
    "no-pixels",
    "huge",
    "no-patient-id",
    "burned-in-text",
    "ultrasound",
)


@dataclass(frozen=True)
class Storage:
    """How one file stores its grey values.

    `window` is a VOI LUT function, or "" for a file without a window.
    """

    bits: int
    inverted: bool = False
    signed: bool = False
    window: str = "LINEAR"
    syntax: UID = ExplicitVRLittleEndian
    computed: bool = False  # CR, not DX


STORED = (
    Storage(12),
    Storage(14, inverted=True),
    Storage(12, window="SIGMOID"),
    Storage(12, window="LINEAR_EXACT", syntax=RLELossless),
    Storage(10, signed=True, computed=True),
    Storage(8, window="", syntax=DeflatedExplicitVRLittleEndian),
)


@dataclass(frozen=True)
class Radiographed:
    """The radiographs, uint8 [H, W], of a person who has no name yet, all of one label."""

    radiographs: tuple[Pixels, ...]
    label: str


def write_chest_hospital(people: Sequence[Radiographed], out: Path, hospital_index: int) -> Truth:
    """Write `out`/dicom and `out`/labels.csv and return the truth.

    Raises OSError when `out` cannot be written.
    """
    (out / "dicom").mkdir(parents=True)
    chance = random.Random(f"kohort demo chest hospital {hospital_index}")
    export = Export(out / "dicom", chance, f"{hospital_index:02d}")
    rows = [("patient", "label")]
    second_every = max(1, len(people) // SECOND_EXPOSURES)
    for number, one in enumerate(people):
        # each person's radiographs, stored in one way after the other
        person = invent_person(export, "")
        rows.append((person.patient_id, one.label))
        for radiograph in one.radiographs:
            _write(export, person, radiograph, STORED[export.files % len(STORED)])

        # a second exposure for a few, and the first radiograph once more under another patient id
        if number % second_every == 1:
            _write(export, person, _expose_again(one.radiographs[0], chance), STORED[0])
        if number == 0:
            alias = invent_person(export, "")
            rows.append((alias.patient_id, one.label))
            _write(export, alias, one.radiographs[0], STORED[0])

    # one broken file of each kind
    for kind in BROKEN:
        _write_broken(export, kind, people[-1].radiographs[0])
    write_labels(out / "labels.csv", rows)
    by_label = Counter(one.label for one in people)
    return export.truth(out, len(people), len(BROKEN), by_label)


def enlarge(radiograph: Pixels) -> NDArray[np.float64]:
    """Return a uint8 [H, W] crop as a detector's image: shares of white [4H, 4W] in 0..1."""
    height, width = radiograph.shape
    big = Image.fromarray(radiograph).resize(
        (ENLARGED * width, ENLARGED * height), Image.Resampling.BICUBIC
    )
    return np.asarray(big, dtype=np.float64) / 255


def _expose_again(radiograph: Pixels, chance: random.Random) -> Pixels:
    """A later radiograph of the same person: shifted, turned by up to 3 degrees, brighter."""
    turned = Image.fromarray(radiograph).rotate(
        chance.choice((-1, 1)) * chance.uniform(1, 3),
        Image.Resampling.BICUBIC,
        translate=(chance.choice((-1, 1)), 0),
    )
    brighter = np.asarray(turned, dtype=np.float64) * chance.uniform(1.03, 1.08)
    return np.asarray(np.clip(brighter, 0, 255), np.uint8)


def _write(export: Export, person: Person, radiograph: Pixels, storage: Storage) -> Path:
    """Write one radiograph as one file, whose name tells the person, as in real exports."""
    dataset = _header(export, person, storage)
    _put_pixels(dataset, enlarge(radiograph), storage)
    path = export.folder / export.note(
        f"{person.name.replace('^', '_')}_{person.birth_date}_{export.files:03d}.dcm"
    )
    dataset.save_as(path, enforce_file_format=True)
    export.files += 1
    return path


def _put_pixels(dataset: Dataset, shares: NDArray[np.float64], storage: Storage) -> None:
    """Store values such that a viewer shows `shares` [H, W]."""
    # describe the values
    full = (1 << storage.bits) - 1
    dataset.Rows, dataset.Columns = shares.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsStored = storage.bits
    dataset.HighBit = storage.bits - 1
    dataset.BitsAllocated = 8 if storage.bits == 8 else 16
    dataset.PixelRepresentation = int(storage.signed)
    dataset.PhotometricInterpretation = "MONOCHROME1" if storage.inverted else "MONOCHROME2"

    # undo what a viewer does: inversion, window, rescale
    if storage.inverted:
        shares = 1 - shares
    values = np.rint(full * _invert_window(shares, storage.window)).astype(np.int32)
    offset = (full + 1) // 2 if storage.signed else 0
    if storage.window:
        dataset.VOILUTFunction = storage.window
        dataset.WindowCenter, dataset.WindowWidth = _window(full, storage)
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = offset
    dataset.RescaleType = "US"

    # write the pixels
    kinds = {(8, 0): np.uint8, (16, 0): np.uint16, (16, 1): np.int16}
    stored = (values - offset).astype(kinds[dataset.BitsAllocated, dataset.PixelRepresentation])
    dataset.PixelData = stored.tobytes()
    if storage.syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)


def _window(full: int, storage: Storage) -> tuple[float, float]:
    """Centre and width that show 0..full from black to white (DICOM PS3.3 C.11.2.1.2)."""
    if storage.window == "LINEAR":
        return (full + 1) / 2, full + 1
    return full / 2, full


def _invert_window(shares: NDArray[np.float64], function: str) -> NDArray[np.float64]:
    """The values that the window's function maps to `shares`: undo the sigmoid, if it is one."""
    if function != "SIGMOID":
        return shares
    inside = np.clip(shares, 0.125, 0.875)  # the sigmoid of a full window runs from 0.12 to 0.88
    return np.clip(0.5 + np.log(inside / (1 - inside)) / 4, 0, 1)


def _header(export: Export, person: Person, storage: Storage) -> Dataset:
    """A header with as many identifiers as a real one."""
    note = export.note
    chance = export.chance

    # the object; pixels are run-length encoded later
    dataset = Dataset()
    syntax = storage.syntax
    if syntax == RLELossless:
        syntax = ExplicitVRLittleEndian
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    if storage.computed:
        dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = note(uid(export, "instance"))
    dataset.StudyInstanceUID = note(uid(export, "study"))
    dataset.SeriesInstanceUID = note(uid(export, "series"))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID

    # the image
    dataset.Modality = "CR" if storage.computed else "DX"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.BurnedInAnnotation = "NO"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = chance.choice(("PA", "AP"))

    # the person and the examination
    dataset.PatientName = person.name
    dataset.PatientID = person.patient_id
    dataset.PatientBirthDate = person.birth_date
    dataset.PatientSex = chance.choice("FM")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = (
        person.study_date
    )
    dataset.StudyTime = dataset.ContentTime = (
        f"{chance.randrange(8, 18):02d}{chance.randrange(60):02d}00"
    )

    # what else identifies
    dataset.AccessionNumber = note(f"ACC{export.tag}{chance.randrange(10**9):09d}")
    dataset.StudyID = note(f"STU{export.tag}{chance.randrange(10**6):06d}")
    dataset.InstitutionName = note(f"Invented Chest Clinic {export.tag}")
    dataset.ReferringPhysicianName = note(f"REFERRER-{export.tag}") + "^INVENTED"
    dataset.PatientComments = note(
        f"coughs since the fair, phone 0555-{chance.randrange(10**7):07d}"
    )
    dataset.ImageComments = note(f"compare with {person.name} of last winter")
    dataset.DeviceSerialNumber = note(f"SN-{export.tag}-DETECTOR-{chance.randrange(10**5):05d}")
    dataset.Manufacturer = "Invented X-Rays"
    dataset.InstanceNumber = 1
    return dataset


def _write_broken(export: Export, kind: str, radiograph: Pixels) -> None:
    """Write one file that cannot be used, for the reason that `kind` names."""
    person = invent_person(export, "")
    path = _write(export, person, radiograph, STORED[0])
    if kind == "not-dicom":
        path.write_bytes(f"worklist of {person.name}\n".encode())
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.write_bytes(_rewrite(path, kind))


def _rewrite(path: Path, kind: str) -> bytes:
    """Return the file with the fault that `kind` names."""
    dataset = dcmread(path)
    if kind == "no-pixels":
        del dataset.PixelData
    elif kind == "huge":
        dataset.Rows = 46341
        dataset.Columns = 65535
    elif kind == "no-patient-id":
        dataset.PatientID = " "
    elif kind == "burned-in-text":
        dataset.BurnedInAnnotation = "YES"
    else:
        dataset.Modality = "US"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
