"""A made-up hospital's DICOM export for the demo, with known truth: what the real world does, done on purpose.

In: crops of public fundus photographs (JPEG) with grade and eye. Out: a folder of Ophthalmic Photography DICOM files
full of invented names, dates, ids and comments, a labels file, and `Truth`. Guaranteed: the same hospital index gives
the same bytes; every identifying string stands in `Truth.identifiers`, so that a test can search for it wherever it
should not be. Not covered: anything but test data.

Among the files, beside one photograph a person: mixed transfer syntaxes; a few second exposures (moved, brighter);
one photograph that stands under two patient ids; and broken files, one of each kind.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
SYLLABLES = "bar dem fel gor hin jak lun mer nol pes rud sav tor vel wim zan".split()

Crop = tuple[Path, int, str]


@dataclass(frozen=True)
class Truth:
    """What a hospital's folder really holds. `identifiers`: strings of at least 8 characters that must never leave
    it."""

    folder: Path
    labels_csv: Path
    persons: int
    files: int
    broken: int
    identifiers: tuple[str, ...]
    persons_by_label: Mapping[str, int]


@dataclass(frozen=True)
class Person:
    """An invented patient. Dates are YYYYMMDD."""

    name: str
    patient_id: str
    birth_date: str
    study_date: str
    laterality: str


@dataclass
class Export:
    """The folder being written and what it gives away."""

    folder: Path
    chance: random.Random
    tag: str
    identifiers: list[str] = field(default_factory=list)
    files: int = 0

    def note(self, text: str) -> str:
        """Remember `text` as identifying."""
        self.identifiers.append(text)
        return text


def write_hospital(
    crops: Sequence[Crop],
    out: Path,
    hospital_index: int,
    size_px: int = 128,
    *,
    label_of: Mapping[int, str] = DIABETIC_RETINOPATHY,
) -> Truth:
    """Write `out`/dicom and `out`/labels.csv from (JPEG path, grade, "L" or "R") crops, one person each, and return
    the truth.

    `label_of` maps a grade to the study's label. Raises KeyError for a grade that it lacks, OSError for an unreadable
    crop.
    """
    (out / "dicom").mkdir(parents=True)
    export = Export(
        out / "dicom",
        random.Random(f"kohort demo hospital {hospital_index}"),
        f"{hospital_index:02d}",
    )
    rows = [("patient", "label", "laterality")]
    for number, (path, grade, laterality) in enumerate(crops):
        person = invented(export, laterality)
        rows.append((person.patient_id, label_of[grade], laterality))
        jpeg = _jpeg(path, size_px)
        _write_exposure(export, person, jpeg, SYNTAXES[number % len(SYNTAXES)])
        if number % max(1, len(crops) // SECOND_EXPOSURES) == 1:
            _write_exposure(export, person, _moved(jpeg, export.chance), JPEGBaseline8Bit)
        if number == 0:
            alias = invented(export, laterality)
            rows.append((alias.patient_id, label_of[grade], laterality))
            _write_exposure(export, alias, jpeg, ExplicitVRLittleEndian)
    for kind in BROKEN:
        _write_broken(export, kind, _jpeg(crops[-1][0], size_px))
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    by_label = Counter(label_of[grade] for _, grade, _ in crops)
    secrets = tuple(dict.fromkeys(export.identifiers))
    return Truth(
        out / "dicom", out / "labels.csv", len(crops), export.files, len(BROKEN), secrets, by_label
    )


def invented(export: Export, laterality: str) -> Person:
    """Return a person whose every string is noted."""
    chance = export.chance
    family, given = ("".join(chance.choices(SYLLABLES, k=3)).upper() for _ in range(2))
    birth = f"{chance.randint(1930, 1990)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    study = f"{chance.randint(2015, 2024)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    patient_id = f"MRN-{export.tag}-{chance.randrange(10**7):07d}"
    for text in (family, given, birth, study, patient_id):
        export.note(text)
    return Person(f"{family}^{given}", patient_id, birth, study, laterality)


def _jpeg(path: Path, size_px: int) -> bytes:
    """The crop's own JPEG bytes, or those of the resized crop."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        if picture.size == (size_px, size_px):
            return data
        return _encoded(picture.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _moved(jpeg: bytes, chance: random.Random) -> bytes:
    """A second exposure: turned by up to 3 degrees, shifted by up to 3 %, 4 to 10 % brighter."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        shift = tuple(
            chance.choice((-1, 1)) * chance.uniform(0.01, 0.03) * picture.width for _ in range(2)
        )
        angle = chance.choice((-1, 1)) * chance.uniform(1, 3)
        gain = chance.uniform(1.04, 1.10)
        turned = picture.convert("RGB").rotate(
            angle, Image.Resampling.BICUBIC, translate=(int(shift[0]), int(shift[1]))
        )
        return _encoded(turned.point(lambda level: min(255, int(level * gain))))


def _pixels(jpeg: bytes) -> Pixels:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _write_exposure(export: Export, person: Person, jpeg: bytes, syntax: UID) -> Path:
    """One photograph as one DICOM file under a name that gives its person away, as exports do."""
    dataset = _header(export, person, syntax)
    _put_pixels(dataset, jpeg, syntax)
    path = export.folder / export.note(
        f"{person.name.replace('^', '_')}_{person.birth_date}_{export.files:03d}.dcm"
    )
    dataset.save_as(path, enforce_file_format=True)
    export.files += 1
    return path


def _put_pixels(dataset: Dataset, jpeg: bytes, syntax: UID) -> None:
    """JPEG bytes as they are, or decoded and stored plain, run-length encoded or deflated."""
    pixels = _pixels(jpeg)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = pixels.shape
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PlanarConfiguration = 0
    dataset.NumberOfFrames = 1
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
    """A header as talkative as a real one."""
    note = export.note
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if syntax == RLELossless else syntax
    )
    dataset.SOPClassUID = OPHTHALMIC_PHOTOGRAPHY_8_BIT
    dataset.SOPInstanceUID = note(uid(export, "instance"))
    dataset.StudyInstanceUID = note(uid(export, "study"))
    dataset.SeriesInstanceUID = note(uid(export, "series"))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "OP"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    dataset.BurnedInAnnotation = "NO"
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


def uid(export: Export, kind: str) -> str:
    """Return a deterministic 2.25 UID."""
    text = f"{export.tag} {kind} {export.chance.random()}"
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


def _write_broken(export: Export, kind: str, jpeg: bytes) -> None:
    """One file that cannot be used, for the reason that `kind` names."""
    person = invented(export, "R")
    path = _write_exposure(export, person, jpeg, ExplicitVRLittleEndian)
    if kind == "not-dicom":
        path.write_bytes(f"export log of {person.name}\n".encode())
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.write_bytes(_rewritten(path, kind))


def _rewritten(path: Path, kind: str) -> bytes:
    """The file again, without pixels, with a huge declared size, or with a blank patient id."""
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
