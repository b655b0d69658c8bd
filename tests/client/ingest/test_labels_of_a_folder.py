"""The labels file and the folder together: what fits nothing stops an ingest before it freezes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from client.ingest.build import IngestReport, ingest
from client.ingest.labels import Wording
from client.ingest.request import Limits
from client.state.people import PeopleFile
from common.errors import ConfigurationError
from common.study.intake import Intake
from tests import phantoms

Rules = Callable[..., Intake]
SIDE = 64


def photographs(folder: Path, names: Sequence[str]) -> Path:
    """Small colour photographs, each of another shade."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantoms.fundus(number, SIDE)).save(path)
    return folder


def films(folder: Path, ids: Sequence[str]) -> Path:
    """One DICOM photograph for each id."""
    for number, identifier in enumerate(ids):
        phantoms.write_fundus(folder / f"{number}.dcm", identifier, phantoms.fundus(number, SIDE))
    return folder


def take_in(tmp_path: Path, rules: Intake, key: bytes, table: str, **rest: object) -> IngestReport:
    labels = tmp_path / "labels.csv"
    labels.write_text(table, encoding="utf-8")
    return ingest(
        tmp_path / "data",
        rules,
        key,
        tmp_path / "out",
        labels_csv=labels,
        limits=Limits(workers=1),
        people=PeopleFile(tmp_path / "people"),
        **rest,  # type: ignore[arg-type]
    )


@pytest.mark.usefixtures("in_process")
def test_a_table_as_a_hospital_writes_it_is_taken_in_and_explained(
    intake: Rules, key: bytes, tmp_path: Path
) -> None:
    photographs(tmp_path / "data", ["2024/IMG_1.JPG", "2024/b.png", "c.png", "d.png"])
    table = (
        "Datei;Patienten-ID;Befund;Seite;Alter\n"
        "2024\\img_1.jpg;P1;NPDR;links;70\nexport/2024/b.png;P2;ohne;OG;71\nc.png;P3;ohne;rechts\n"
        "e.png;P4;ohne;R;70\n"
    )
    columns = {
        "Datei": "file",
        "Patienten-ID": "patient",
        "Befund": "label",
        "Seite": "laterality",
    }
    wording = Wording(columns, {"NPDR": "mild", "ohne": "none"})
    report = take_in(tmp_path, intake(), key, table, wording=wording)
    assert (report.ingested, report.patients) == (3, 3)
    assert dict(report.quarantined) == {"no-patient-id": 1}
    assert report.labels == (
        "labels: UTF-8, separated by semicolons, 4 rows; not read: `Alter`",
        "labels: lines 2, 3: the file that is named differs in case or in leading folders from the "
        "one that is there",
        "labels: line 5: no such file below the data folder",
        "labels: 3 of 4 rows name a file or patient that is here; 3 of 4 images have a row",
    )


@pytest.mark.usefixtures("in_process")
def test_ids_that_lost_their_zeros_in_a_spreadsheet_find_their_label(
    intake: Rules, key: bytes, tmp_path: Path
) -> None:
    films(tmp_path / "data", [f"0001{i}" for i in range(4)])
    rows = "".join(f"1{i},none\n" for i in range(4))
    report = take_in(tmp_path, intake(), key, f"patient,label\n{rows}99,none\n")
    assert (report.ingested, report.patients) == (4, 4)
    assert report.labels[-2:] == (
        "labels: 4 images whose id is spelled otherwise in their row",
        "labels: line 6: no image is of this patient",
    )


TABLES = {
    "another ending": "file,patient,label\na.tif,P1,none\nb.tif,P2,none\n",
    "no such file below the data folder": "file,patient,label\nx.png,P1,none\ny.png,P2,none\n",
    "lies in another folder": "file,patient,label\nold/a.png,P1,none\nold/b.png,P2,none\n",
    "leading zeros": "file,patient,label\n7.png,P1,none\nx.png,P2,none\n",
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("cause", TABLES)
def test_a_table_of_another_folder_stops_the_ingest_with_the_likely_cause(
    cause: str, intake: Rules, key: bytes, tmp_path: Path
) -> None:
    photographs(tmp_path / "data", ["new/a.png", "new/b.png", "007.png"])
    with pytest.raises(ConfigurationError) as error:
        take_in(tmp_path, intake(), key, TABLES[cause])
    assert error.value.code == "E-LABELS-MATCH"
    assert "0 of 2 rows" in str(error.value)
    assert "0 of 3 images" in str(error.value)
    assert cause in str(error.value)
    # nothing is frozen, and nobody is remembered
    assert {path.name for path in tmp_path.iterdir()} == {"data", "labels.csv"}


@pytest.mark.usefixtures("in_process")
def test_a_table_of_other_patients_stops_the_ingest(
    intake: Rules, key: bytes, tmp_path: Path
) -> None:
    films(tmp_path / "data", ["A1", "A2", "A3"])
    table = "patient,label\nB1,none\nB2,none\nA3,none\n"
    with pytest.raises(ConfigurationError, match=r"1 of 3 rows .* 1 of 3 images"):
        take_in(tmp_path, intake(), key, table)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "labels.csv"}


@pytest.mark.usefixtures("in_process")
def test_a_table_of_a_whole_hospital_and_a_folder_of_some_of_it_fit(
    intake: Rules, key: bytes, tmp_path: Path
) -> None:
    films(tmp_path / "data", ["A1", "A2"])
    rows = "".join(f"A{i},none\n" for i in range(1, 30))
    report = take_in(tmp_path, intake(), key, f"patient,label\n{rows}")
    assert report.ingested == 2
    assert "2 of 29 rows name a file or patient that is here" in "\n".join(report.labels)
    assert report.labels[-1] == "labels: lines 4 to 30: no image is of this patient"
