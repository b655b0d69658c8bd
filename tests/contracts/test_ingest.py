"""What intake promises, as theorems over whole ingests of invented hospitals.

With real child processes and real files.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from client.ingest.build import ingest
from client.ingest.cohort import Cohort
from client.ingest.dicom_header import ALLOWED
from client.ingest.request import Limits
from common.study.intake import Intake
from server.demo.export import Truth
from server.demo.fundus_hospitals import write_hospital
from tests import phantoms

KEY = bytes(range(32))
RULES = Intake(
    dicom_modalities=("OP",),
    size_px=64,
    channels=3,
    labels=("none", "mild-moderate", "severe"),
    ordinal_labels=True,
)
GRADES = (0, 2, 4)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Path]:
    """A demo hospital of 12 persons, and its cohort."""
    folder = tmp_path_factory.mktemp("hospital")
    crops = []
    for number in range(12):
        crop = folder / f"{number}.jpg"
        Image.fromarray(phantoms.fundus(number, 128)).save(crop, quality=92)
        crops.append((crop, GRADES[number % 3], "LR"[number % 2]))
    truth = write_hospital(crops, folder / "export", 1)
    ingest(
        truth.folder,
        RULES,
        KEY,
        folder / "cohort",
        labels_csv=truth.labels_csv,
        limits=Limits(workers=1),
    )
    return truth, folder / "cohort"


def everything(folder: Path) -> bytes:
    return b"\n".join(
        path.name.encode() + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def test_a_photograph_under_two_ids_is_one_patient(hospital: tuple[Truth, Path]) -> None:
    truth, folder = hospital
    with open(truth.labels_csv, encoding="utf-8") as file:
        ids = len({row["patient"] for row in csv.DictReader(file)})
    cohort = Cohort.open(folder)
    assert ids == truth.persons + 1
    assert cohort.patient_count == truth.persons
    assert sorted(map(len, cohort.aliases)) == [1] * (truth.persons - 1) + [2]


def test_no_header_text_or_file_name_reaches_the_cohort(hospital: tuple[Truth, Path]) -> None:
    truth, folder = hospital
    stored = everything(folder)
    planted = everything(truth.folder)
    assert sum(text.encode() in planted for text in truth.identifiers) > 200
    assert [
        text
        for text in truth.identifiers
        if text.encode() in stored or text.encode("utf-16-le") in stored
    ] == []


def test_no_planted_marker_reaches_the_cohort_a_report_or_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        name = f"{phantoms.MARKERS[0]}-{number}.dcm"
        phantoms.write_fundus(
            tmp_path / phantoms.MARKERS[1] / name,
            f"ID-{phantoms.MARKERS[4]}-{number}",
            phantoms.fundus(number),
        )
    broken = tmp_path / phantoms.MARKERS[1] / "broken.dcm"
    broken.write_bytes(
        (tmp_path / phantoms.MARKERS[1] / f"{phantoms.MARKERS[0]}-0.dcm").read_bytes()[:700]
    )
    rules = RULES.model_copy(update={"labels": ("all",)})
    report = ingest(
        tmp_path / phantoms.MARKERS[1], rules, KEY, tmp_path / "cohort", limits=Limits(workers=1)
    )
    assert report.ingested == 3
    stated = repr(report) + "".join(capfd.readouterr())
    stored = everything(tmp_path / "cohort") + stated.encode()
    assert [marker for marker in phantoms.MARKERS if marker.encode() in stored] == []


def test_the_allow_list_names_no_date_name_uid_or_free_text() -> None:
    forbidden = (
        "Name",
        "Date",
        "Time",
        "UID",
        "Comment",
        "Description",
        "Address",
        "Institution",
        "Serial",
        "Physician",
    )
    assert [name for name in ALLOWED if any(word in name for word in forbidden)] == []


def test_a_patient_keeps_the_pseudonym_under_the_same_key_alone(
    hospital: tuple[Truth, Path], tmp_path: Path
) -> None:
    truth, folder = hospital
    for key, same in ((KEY, True), (bytes(32), False)):
        out = tmp_path / key.hex()[:8]
        ingest(truth.folder, RULES, key, out, labels_csv=truth.labels_csv, limits=Limits(workers=1))
        assert (set(Cohort.open(out).pseudonyms) == set(Cohort.open(folder).pseudonyms)) is same


def test_one_patient_has_one_label_whatever_its_images_say(tmp_path: Path) -> None:
    for number, patient in enumerate(("A", "A", "B")):
        phantoms.write_fundus(tmp_path / "s" / f"{number}.dcm", patient, phantoms.fundus(number))
    rows = [("0.dcm", "none"), ("1.dcm", "severe"), ("2.dcm", "none")]
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows, "file,label")
    report = ingest(
        tmp_path / "s", RULES, KEY, tmp_path / "c", labels_csv=labels, limits=Limits(workers=1)
    )
    assert dict(report.quarantined) == {"lower-label-of-person": 1}
    cohort = Cohort.open(tmp_path / "c")
    assert [len(set(cohort.labels[cohort.images_of(p)].tolist())) for p in range(2)] == [1, 1]
