"""Invented vessel hospitals: one index gives the same bytes, and the truth fits the files."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from server.demo.export import Truth
from server.demo.vessel_hospitals import write_vessel_hospital
from server.public_data.phantoms import STYLES, Phantom, volume


@pytest.fixture(scope="module")
def volumes() -> list[Phantom]:
    return [volume(np.random.default_rng(n), STYLES["hospital"], (4, 48, 48)) for n in range(6)]


@pytest.fixture(scope="module")
def truth(volumes: list[Phantom], tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return write_vessel_hospital(volumes, tmp_path_factory.mktemp("hospital") / "a", 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_index_gives_the_same_bytes_and_another_other_ones(
    volumes: list[Phantom], truth: Truth, tmp_path: Path
) -> None:
    again, other = (
        write_vessel_hospital(volumes, tmp_path / name, index)
        for name, index in (("b", 1), ("c", 2))
    )
    assert contents(truth.folder.parent) == contents(again.folder.parent)
    assert truth.identifiers == again.identifiers
    assert not set(truth.identifiers) & {
        text for text in other.identifiers if "-" in text or "2.25" in text
    }


def test_the_truth_fits_the_files(truth: Truth) -> None:
    files = sorted(truth.folder.iterdir())
    assert len(files) == truth.files
    assert truth.persons == 6
    assert all(len(text) >= 8 for text in truth.identifiers)
    assert {path.name for path in files} <= set(truth.identifiers)
    with open(truth.labels_csv, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == set(truth.persons_by_label)
    named = [row["mask"] for row in rows if row["mask"]]
    assert len(named) == 2
    assert all((truth.folder / name).is_file() for name in named)
    kinds: Counter[str] = Counter()
    for path in files:
        if path.read_bytes()[128:132] == b"DICM":
            dataset = dcmread(path)
            kinds[dataset.Modality] += 1
            said = [
                str(dataset[name].value)
                for name in ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "StudyID")
            ]
            assert set(said) <= set(truth.identifiers)
    assert kinds["SEG"] == 4 + 2 + 1 + 3  # first scans, second scans, the alias, broken series


def test_names_and_numbers_say_nothing_of_the_order(truth: Truth) -> None:
    series: dict[str, list[tuple[float, int]]] = {}
    for path in sorted(truth.folder.glob("*.dcm")):
        dataset = dcmread(path, stop_before_pixels=True)
        if dataset.Modality == "MR":
            place = (float(dataset.ImagePositionPatient[2]), int(dataset.InstanceNumber))
            series.setdefault(dataset.SeriesInstanceUID, []).append(place)
    by_name = [
        [height for height, _ in slices] == sorted(height for height, _ in slices)
        for slices in series.values()
    ]
    by_number = {
        tuple(n for _, n in sorted(slices)) for slices in series.values() if len(slices) == 4
    }
    assert not all(by_name)
    assert by_number == {(1, 2, 3, 4), (4, 3, 2, 1)}


def test_stored_values_and_masks_are_those_of_the_phantom(
    volumes: list[Phantom], truth: Truth
) -> None:
    with open(truth.labels_csv, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows[:5] if r["mask"]]  # the third person, behind the alias of the first
    mask = np.asarray(nibabel.load(truth.folder / row["mask"]).dataobj)
    assert mask.sum() == volumes[2].mask.sum()
    levels = set()
    for path in truth.folder.glob("*.dcm"):
        dataset = dcmread(path)
        if dataset.PatientID == row["patient"] and dataset.Modality == "MR":
            values = dataset.pixel_array * float(dataset.RescaleSlope) + float(
                dataset.RescaleIntercept
            )
            levels.add(round(values.sum()))
    assert levels == {int(np.rint(plane * 4000).astype(int).sum()) for plane in volumes[2].image}
