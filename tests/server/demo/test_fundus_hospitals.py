"""Invented fundus hospitals: one index gives the same bytes, and the truth fits the files."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread

from server.demo.fundus_hospitals import SYNTAXES, Crop, write_hospital
from tests import phantoms


@pytest.fixture
def crops(tmp_path: Path) -> list[Crop]:
    found: list[Crop] = []
    for number in range(9):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(phantoms.fundus(number, 96)).save(path, quality=92)
        found.append((path, number % 5, "LR"[number % 2]))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_index_gives_the_same_bytes_and_another_other_ones(
    crops: list[Crop], tmp_path: Path
) -> None:
    one, again, other = (
        write_hospital(crops, tmp_path / name, index)
        for name, index in (("a", 1), ("b", 1), ("c", 2))
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert one.identifiers == again.identifiers
    assert not set(one.identifiers) & {
        text for text in other.identifiers if "-" in text or "2.25" in text
    }


def test_the_truth_fits_the_files(crops: list[Crop], tmp_path: Path) -> None:
    truth = write_hospital(crops, tmp_path / "out", 3, size_px=64)
    files = sorted(truth.folder.iterdir())
    assert len(files) == truth.files
    assert truth.persons == len(crops)
    assert all(len(text) >= 8 for text in truth.identifiers)
    assert set(path.name for path in files) <= set(truth.identifiers)
    with open(truth.labels_csv, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == truth.persons + 1
    assert Counter(row["label"] for row in rows) == Counter(truth.persons_by_label) + Counter(
        {"none": 1}
    )
    syntaxes = set()
    for path in files[:]:
        if path.read_bytes()[128:132] == b"DICM":
            dataset = dcmread(path)
            syntaxes.add(dataset.file_meta.TransferSyntaxUID)
            given = [
                str(dataset.PatientID),
                str(dataset.StudyInstanceUID),
                dataset.PatientBirthDate,
                dataset.DeviceSerialNumber,
            ]
            assert {text for text in given if text.strip()} <= set(truth.identifiers)
    assert syntaxes == set(SYNTAXES)
