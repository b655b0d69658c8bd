"""Invented chest hospitals: one index gives the same bytes, and the truth fits the files."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from client.ingest.dicom import read_dicom
from client.ingest.quarantine import Unusable
from server.demo.chest_hospitals import BROKEN, STORED, Radiographed, enlarge, write_chest_hospital
from server.demo.export import Truth

MODALITIES = ("DX", "CR")


def radiograph(seed: int) -> np.ndarray:
    """Soft shapes, uint8 [28, 28], from 40 to 215: inside what a sigmoid window can show."""
    coarse = np.random.default_rng(seed).integers(40, 216, (4, 4)).astype(np.uint8)
    return np.repeat(np.repeat(coarse, 7, 0), 7, 1)


PEOPLE = [Radiographed((radiograph(i),), ("normal", "pneumonia")[i % 2]) for i in range(11)]
PEOPLE.append(Radiographed((radiograph(20), radiograph(21)), "normal"))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return write_chest_hospital(PEOPLE, tmp_path_factory.mktemp("chest") / "out", 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_index_gives_the_same_bytes_and_another_other_ones(
    hospital: Truth, tmp_path: Path
) -> None:
    again, other = (
        write_chest_hospital(PEOPLE, tmp_path / name, index) for name, index in (("b", 1), ("c", 2))
    )
    assert contents(again.folder.parent) == contents(hospital.folder.parent)
    assert again.identifiers == hospital.identifiers
    assert not set(hospital.identifiers) & {
        text for text in other.identifiers if "-" in text or "2.25" in text
    }


def test_every_usable_file_shows_one_of_the_radiographs_and_every_broken_one_is_refused(
    hospital: Truth,
) -> None:
    known = [np.rint(255 * enlarge(picture)) for one in PEOPLE for picture in one.radiographs]
    shown, refused = Counter[int](), Counter[str]()
    for path in sorted(hospital.folder.iterdir()):
        with open(path, "rb") as file:
            try:
                pixels = read_dicom(file, MODALITIES, None, 1 << 24).pixels[..., 0]
            except Unusable as error:
                refused[error.reason.value] += 1
                continue
            except Exception:
                refused["not-dicom"] += 1
                continue
        errors = [float(np.abs(pixels - picture).mean()) for picture in known]
        shown[int(np.argmin(errors)) if min(errors) < 2.5 else -1] += 1
    blank_id = 1  # its picture is fine; who it shows is the cohort's question
    assert sum(refused.values()) == len(BROKEN) - blank_id == 6
    assert {
        "truncated",
        "not-an-image",
        "declared-too-large",
        "burned-in-text",
        "wrong-modality",
    } <= set(refused)
    assert all(shown[i] >= 1 for i in range(len(known)))
    assert shown[0] == 2  # under two patient ids
    assert shown[-1] == 6  # later radiographs of the same person, moved and brighter


def test_the_truth_fits_the_files_and_every_way_of_storing_occurs(hospital: Truth) -> None:
    files = sorted(hospital.folder.iterdir())
    assert (len(files), hospital.persons, hospital.broken) == (
        hospital.files,
        len(PEOPLE),
        len(BROKEN),
    )
    assert {path.name for path in files} <= set(hospital.identifiers)
    assert all(len(text) >= 8 for text in hospital.identifiers)
    with open(hospital.labels_csv, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["label"] for row in rows) == Counter(hospital.persons_by_label) + Counter(
        {"normal": 1}
    )
    seen = set()
    for path in files:
        if path.read_bytes()[128:132] != b"DICM":
            continue
        found = dcmread(path)
        given = {
            str(found.PatientID),
            str(found.SOPInstanceUID),
            found.AccessionNumber,
            found.DeviceSerialNumber,
        }
        assert {text for text in given if text.strip()} <= set(hospital.identifiers)
        seen.add(
            (
                found.BitsStored,
                found.PhotometricInterpretation,
                found.Modality,
                found.get("VOILUTFunction", ""),
            )
        )
    assert len(seen) >= len(STORED)
