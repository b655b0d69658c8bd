"""Writes an invented hospital's DICOM export of fundus photographs, with known truth.

In: crops of public fundus photographs (JPEG) with grade and eye.
Out: a folder of Ophthalmic Photography DICOM files, a labels file, and `Truth`.
Guarantees: the same hospital index gives the same bytes; every identifying string stands in
`Truth.identifiers`.
Not covered: anything but test data.

The files differ as those of real hospitals do: four transfer syntaxes, a few second exposures, one
photograph under two patient ids, broken files (`BROKEN`).
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from common.arrays import Pixels
from server.demo.export import Export, Person, Truth, invent_person, uid, write_labels

OPHTHALMIC_PHOTOGRAPHY_8_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
SYNTAXES = (ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, DeflatedExplicitVRLittleEndian)
SECOND_EXPOSURES = 6
BROKEN = ("not-dicom", "truncated", "no-pixels", "huge", "no-patient-id")
DIABETIC_RETINOPATHY: Mapping[int, str] = {
    0: "none",
    1: "mild-moderate",
    2: "mild-moderate",
    3: "severe",
    4: "severe",
}

Crop = tuple[Path, int, str]


def write_hospital(
    crops: Sequence[Crop],
    out: Path,
    hospital_index: int,
    size_px: int = 128,
    *,
    label_of: Mapping[int, str] = DIABETIC_RETINOPATHY,
) -> Truth:
    """Write `out`/dicom and `out`/labels.csv, one person for each crop, and return the truth.

    A crop is a JPEG path, a grade, and "L" or "R"; `label_of` maps a grade to the study's label.
    Raises KeyError for a grade that `label_of` lacks, OSError for an unreadable crop.
    """
    (out / "dicom").mkdir(parents=True)
    chance = random.Random(f"kohort demo hospital {hospital_index}")
    export = Export(out / "dicom", chance, f"{hospital_index:02d}")
    rows = [("patient", "label", "laterality")]
    second_every = max(1, len(crops) // SECOND_EXPOSURES)
    for number, (path, grade, laterality) in enumerate(crops):
        # one photograph for each person, in one transfer syntax after the other
        person = invent_person(export, laterality)
        rows.append((person.patient_id, label_of[grade], laterality))
        jpeg = _jpeg(path, size_px)
        _write_exposure(export, person, jpeg, SYNTAXES[number % len(SYNTAXES)])

        # a second exposure for a few, and the first photograph once more under another patient id
        if number % second_every == 1:
            _write_exposure(export, person, _expose_again(jpeg, chance), JPEGBaseline8Bit)
        if number == 0:
            alias = invent_person(export, laterality)
            rows.append((alias.patient_id, label_of[grade], laterality))
            _write_exposure(export, alias, jpeg, ExplicitVRLittleEndian)

    # one broken file of each kind
    for kind in BROKEN:
        _write_broken(export, kind, _jpeg(crops[-1][0], size_px))
    write_labels(out / "labels.csv", rows)
    by_label = Counter(label_of[grade] for _, grade, _ in crops)
    return export.truth(out, len(crops), len(BROKEN), by_label)


def _jpeg(path: Path, size_px: int) -> bytes:
    """The crop's own JPEG bytes, or those of the resized crop."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        if picture.size == (size_px, size_px):
            return data
        return _encode(picture.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def _encode(picture: Image.Image) -> bytes:
    """The picture as JPEG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _expose_again(jpeg: bytes, chance: random.Random) -> bytes:
    """A second exposure: turned by up to 3 degrees, shifted by up to 3 %, 4 to 10 % brighter."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        across = chance.choice((-1, 1)) * chance.uniform(0.01, 0.03) * picture.width
        down = chance.choice((-1, 1)) * chance.uniform(0.01, 0.03) * picture.width
        angle = chance.choice((-1, 1)) * chance.uniform(1, 3)
        gain = chance.uniform(1.04, 1.10)
        turned = picture.convert("RGB").rotate(
            angle, Image.Resampling.BICUBIC, translate=(int(across), int(down))
        )
        return _encode(turned.point(lambda level: min(255, int(level * gain))))


def _pixels(jpeg: bytes) -> Pixels:
    """The colours of a JPEG, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _write_exposure(export: Export, person: Person, jpeg: bytes, syntax: UID) -> Path:
    """Write one photograph as one file, whose name tells the person, as in real exports."""
    dataset = _header(export, person, syntax)
    _put_pixels(dataset, jpeg, syntax)
    path = export.folder / export.note(
        f"{person.name.replace('^', '_')}_{person.birth_date}_{export.files:03d}.dcm"
    )
    dataset.save_as(path, enforce_file_format=True)
    export.files += 1
    return path


def _put_pixels(dataset: Dataset, jpeg: bytes, syntax: UID) -> None:
    """Store the JPEG bytes as they are, or decoded: plain, run-length encoded or deflated."""
    # describe the values
    pixels = _pixels(jpeg)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = pixels.shape
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PlanarConfiguration = 0
    dataset.NumberOfFrames = 1

    # write the pixels
    if syntax == JPEGBaseline8Bit:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.LossyImageCompression = "01"
        dataset.PixelData = encapsulate([jpeg])
        dataset["PixelData"].is_undefined_length = True
        return
    dataset.PhotometricInterpretation = "RGB"
    dataset.PixelData = pixels.tobytes()
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)


def _header(export: Export, person: Person, syntax: UID) -> Dataset:
    """A header with as many identifiers as a real one."""
    note = export.note

    # the object; pixels are run-length encoded later
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = OPHTHALMIC_PHOTOGRAPHY_8_BIT
    dataset.SOPInstanceUID = note(uid(export, "instance"))
    dataset.StudyInstanceUID = note(uid(export, "study"))
    dataset.SeriesInstanceUID = note(uid(export, "series"))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID

    # the image
    dataset.Modality = "OP"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    dataset.BurnedInAnnotation = "NO"

    # the person and the examination
    dataset.PatientName = person.name
    dataset.PatientID = person.patient_id
    dataset.PatientBirthDate = person.birth_date
    dataset.PatientSex = export.chance.choice("FM")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = (
        person.study_date
    )
    dataset.StudyTime = dataset.ContentTime = (
        f"{export.chance.randrange(8, 18):02d}{export.chance.randrange(60):02d}00"
    )

    # what else identifies
    dataset.AccessionNumber = note(f"ACC{export.tag}{export.chance.randrange(10**9):09d}")
    dataset.StudyID = note(f"STU{export.tag}{export.chance.randrange(10**6):06d}")
    dataset.InstitutionName = note(f"Invented Eye Clinic {export.tag}")
    dataset.ReferringPhysicianName = note(f"REFERRER-{export.tag}") + "^INVENTED"
    dataset.PatientComments = note(
        f"lives next to the mill, phone 0555-{export.chance.randrange(10**7):07d}"
    )
    dataset.ImageComments = note(f"as discussed with daughter of {person.name}")
    dataset.DeviceSerialNumber = note(
        f"SN-{export.tag}-FUNDUS-{export.chance.randrange(10**5):05d}"
    )
    dataset.Manufacturer = "Invented Optics"
    dataset.ImageLaterality = person.laterality
    dataset.InstanceNumber = 1
    return dataset


def _write_broken(export: Export, kind: str, jpeg: bytes) -> None:
    """Write one file that cannot be used, for the reason that `kind` names."""
    person = invent_person(export, "R")
    path = _write_exposure(export, person, jpeg, ExplicitVRLittleEndian)
    if kind == "not-dicom":
        path.write_bytes(f"export log of {person.name}\n".encode())
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.write_bytes(_rewrite(path, kind))


def _rewrite(path: Path, kind: str) -> bytes:
    """Return the file without pixels, with a huge declared size, or with a blank patient id."""
    dataset = dcmread(path)
    if kind == "no-pixels":
        del dataset.PixelData
    elif kind == "huge":
        dataset.Rows = 46341
        dataset.Columns = 65535
    else:
        dataset.PatientID = " "
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
