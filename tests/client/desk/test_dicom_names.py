"""A patient whose name is a script: from the DICOM header to the reviewer's page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.ingest.build import ingest
from client.ingest.request import Limits
from client.state.folder import State
from tests import phantoms
from tests.client.desk.conftest import visit, wait_for_people
from tests.shown_batches import PATIENTS, showing_hospital

SCRIPT = "<script>alert(1)</script>"


def test_a_patient_whose_name_is_a_script_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the cohort nor a page holds a letter of it: pseudonyms alone get that far."""
    hospital = showing_hospital(tmp_path / "hospital", monkeypatch)
    export = tmp_path / "export"
    rows = []
    for number in range(PATIENTS):
        patient = f"{SCRIPT}{number}"
        text = {"PatientName": SCRIPT, "StudyDescription": SCRIPT, "ImageComments": SCRIPT}
        phantoms.write_fundus(
            export / f"<img src=x>{number}.dcm", patient, phantoms.fundus(number, 64), **text
        )
        rows.append((patient, "none" if number < PATIENTS / 2 else "mild-moderate"))
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows)
    place = State(hospital.root)
    cohort = place.cohort(hospital.study.intake)
    shutil.rmtree(cohort)
    limits = Limits(workers=1)
    key = place.pseudonym_bytes()
    ingest(export, hospital.study.intake, key, cohort, labels_csv=labels, limits=limits)
    wait_for_people(hospital)
    visitor = visit(hospital)
    visitor.enter()
    digest = visitor.reviews.find("").digest
    pages = [visitor.get(path).text for path in ("/", f"/batches/{digest}")]
    stored = [path.read_bytes() for path in cohort.iterdir()]
    stored += [path.read_bytes() for path in visitor.reviews.find("").folder.iterdir()]
    assert len(list(export.iterdir())) == PATIENTS
    for text in ("script", "alert(1)", "img src=x"):
        assert all(text.encode() not in data for data in stored)
        assert all(text not in page.replace('img src="/place', "") for page in pages)
