"""client/ingest/doubts.py: what must not go on, and what a site may accept."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from client.ingest.build import IngestReport, ingest
from client.ingest.census import SiteWord
from client.ingest.doubts import (
    FEW_FILES,
    LEAST_PICTURES,
    MOST_IDS,
    IdCounts,
    doubt_ids,
    doubt_persons,
)
from client.ingest.persons import ImageRecord
from client.state.people import PeopleFile
from common.errors import ConfigurationError
from common.study.intake import Intake
from tests import phantoms

Rules = Callable[..., Intake]
pytestmark = pytest.mark.usefixtures("in_process")


def kinds(counts: IdCounts) -> list[str]:
    return [doubt.kind for doubt in doubt_ids(counts)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    {
        "no file": (IdCounts(), []),
        "a few mangled ids among many": (IdCounts(files=100, mangled=FEW_FILES), []),
        "more than a few": (IdCounts(files=100, mangled=FEW_FILES + 1), ["mangled-ids"]),
        "all of two": (IdCounts(files=2, mangled=2), ["mangled-ids"]),
        "some placeholders": (IdCounts(files=100, placeholders=50), []),
        "most are placeholders": (IdCounts(files=100, placeholders=51), ["placeholders"]),
        "a few files in all": (IdCounts(files=3, placeholders=3), []),
    }.values(),
)
def test_ids_that_spoil_a_whole_export(counts: IdCounts, expected: list[str]) -> None:
    assert kinds(counts) == expected


def person(names: Sequence[str], pictures: int) -> list[ImageRecord]:
    return [
        ImageRecord(place, tuple(names), 0, 0, f"{names[0]} {place}") for place in range(pictures)
    ]


@pytest.mark.parametrize(
    ("persons", "expected"),
    {
        "many ids": ([person([str(n) for n in range(MOST_IDS + 1)], 1)], ["many-ids"]),
        "as many as somebody may have": ([person([str(n) for n in range(MOST_IDS)], 1)], []),
        "most pictures": ([person("a", LEAST_PICTURES), person("b", 5)], ["large-share"]),
        "few pictures": ([person("a", LEAST_PICTURES - 1), person("b", 5)], []),
        "a quarter": ([person(name, LEAST_PICTURES) for name in "abcd"], []),
    }.values(),
)
def test_one_person_with_too_much(persons: list[list[ImageRecord]], expected: list[str]) -> None:
    stated = {name for one in persons for record in one for name in record.pseudonyms}
    assert [doubt.kind for doubt in doubt_persons(persons, stated)] == expected


def test_one_picture_many_times_is_one_picture() -> None:
    copies = [ImageRecord(place, ("a",), 0, 0, "p") for place in range(3 * LEAST_PICTURES)]
    assert not list(doubt_persons([copies, person("b", 1)], {"a", "b"}))


# --- folders


def take(folder: Path, intake: Intake, key: bytes, word: SiteWord | None = None) -> IngestReport:
    labels = folder / "labels.csv"
    return ingest(
        folder / "data",
        intake,
        key,
        folder / "out",
        labels_csv=labels if labels.is_file() else None,
        people=PeopleFile(folder / "people.sqlite"),
        word=word,
    )


def write_photographs(folder: Path, ids: Sequence[str]) -> None:
    """A photograph a row: its id, and a label."""
    (folder / "data").mkdir()
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "patient", "label"))
        for number, patient in enumerate(ids):
            Image.fromarray(phantoms.fundus(number, 64)).save(folder / "data" / f"{number}.png")
            writer.writerow((f"{number}.png", patient, "none"))


def refusal_of(call: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as error:
        call()
    assert error.value.code == "E-WHO"
    return error.value


@pytest.mark.parametrize("mangled", ["1.23E+05", "1,23E+05"])
def test_ids_in_scientific_notation_stop_the_intake_and_nothing_is_kept(
    mangled: str, tmp_path: Path, intake: Rules, key: bytes
) -> None:
    write_photographs(tmp_path, [mangled] * 5)
    error = refusal_of(lambda: take(tmp_path, intake(), key))
    assert "5 of 5 files have an id in scientific notation" in str(error)
    assert "data.accept: [mangled-ids]" in error.hint
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "people.sqlite").exists()


def test_accepted_the_mangled_files_still_stay_out_and_it_is_told(
    tmp_path: Path, intake: Rules, key: bytes
) -> None:
    write_photographs(tmp_path, ["1.23E+05"] * 4 + ["A1", "A2"])
    word = SiteWord(accept=("mangled-ids",))
    report = take(tmp_path, intake(), key, word)
    assert (report.patients, report.quarantined) == (2, {"no-patient-id": 4})
    assert any("data.accept of site.yaml: mangled-ids" in text for text in report.warnings)


def test_placeholders_in_most_files_are_named(tmp_path: Path, intake: Rules, key: bytes) -> None:
    write_photographs(tmp_path, ["ANONYMIZED PATIENT"] * 5 + ["A1"])
    error = refusal_of(lambda: take(tmp_path, intake(), key))
    assert "5 of 6 files carry a placeholder" in str(error)


def write_shifted(folder: Path, shift: int, count: int = 12) -> None:
    """DICOM files of `count` people; row i names the patient of file i + shift."""
    rows = []
    for number in range(count):
        phantoms.write_fundus(
            folder / "data" / f"{number}.dcm", f"Q{number:03d}", phantoms.fundus(number, 64)
        )
        rows.append((f"{number}.dcm", f"Q{(number + shift):03d}", "none"))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "patient", "label"), *rows])


def test_rows_that_are_shifted_by_one_are_seen_with_every_doubt_at_once(
    tmp_path: Path, intake: Rules, key: bytes
) -> None:
    write_shifted(tmp_path, 1)
    error = refusal_of(lambda: take(tmp_path, intake(), key))
    assert "in 11 of 12 files the header names one patient" in str(error)
    assert "one person has 13 ids" in str(error)
    assert not (tmp_path / "people.sqlite").exists()


def test_a_codebook_contradicts_nothing(tmp_path: Path, intake: Rules, key: bytes) -> None:
    """Rows may call patients by codes of the study: no code is another file's header."""
    write_shifted(tmp_path, 500)
    report = take(tmp_path, intake(), key)
    assert (report.patients, report.merged, report.most_ids) == (12, 12, 2)


def test_one_id_for_everybody_is_an_improbable_share(
    tmp_path: Path, intake: Rules, key: bytes
) -> None:
    write_photographs(tmp_path, ["STUDY01"] * LEAST_PICTURES + ["A1"])
    error = refusal_of(lambda: take(tmp_path, intake(), key))
    assert "one of 2 persons has 20 of 21 pictures" in str(error)
    word = SiteWord(accept=("large-share",))
    assert take(tmp_path, intake(), key, word).patients == 2
