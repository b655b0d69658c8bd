"""client/ingest/decisions.py: persons.csv joins, parts, and is refused where it means nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.ingest.build import IngestReport, ingest
from client.ingest.census import SiteWord
from client.ingest.decisions import MOST_PROBLEMS, read_decisions
from client.state.people import PeopleFile
from common.errors import ConfigurationError
from common.study.intake import Intake
from tests import phantoms

Rules = Callable[..., Intake]


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Two spellings of one number, a stranger, and one photograph under two ids."""
    for number, patient in enumerate(("0012345", "12345", "S1")):
        phantoms.write_fundus(
            tmp_path / "data" / f"{number}.dcm", patient, phantoms.fundus(number, 64)
        )
    for name, patient in (("x", "X1"), ("y", "Y1")):
        phantoms.write_fundus(tmp_path / "data" / f"{name}.dcm", patient, phantoms.fundus(9, 64))
    return tmp_path


@pytest.fixture
def take(clinic: Path, intake: Rules, key: bytes, in_process: None) -> Callable[..., IngestReport]:
    """Ingest the clinic with these rows of persons.csv; each time into a new cohort."""

    def ingest_with(*rows: str) -> IngestReport:
        path = clinic / "persons.csv"
        path.write_text("\n".join(["first,second,decision", *rows]))
        return ingest(
            clinic / "data",
            intake(labels=("all",)),
            key,
            clinic / f"out{len(list(clinic.iterdir()))}",
            people=PeopleFile(clinic / "people.sqlite"),
            word=SiteWord(path),
        )

    return ingest_with


def test_every_join_is_listed_with_its_cause(take: Callable[..., IngestReport]) -> None:
    report = take()
    assert (report.patients, report.merged, report.most_ids) == (3, 2, 2)
    assert report.joins == (
        "0012345 = 12345: one id in two spellings",
        "X1 = Y1: the same picture",
    )


def test_a_join_is_undone_and_stays_so_without_the_row(take: Callable[..., IngestReport]) -> None:
    assert take().patients == 3
    assert take("0012345,12345,different").patients == 4
    assert take().patients == 4
    assert take("12345,0012345,same").patients == 3
    assert take().patients == 3


def test_a_site_says_who_is_one_person_also_by_file(take: Callable[..., IngestReport]) -> None:
    assert take("S1,file:0.dcm,same").patients == 2


def test_one_picture_of_two_people_is_of_neither(take: Callable[..., IngestReport]) -> None:
    report = take("X1,Y1,different")
    assert report.quarantined == {"disputed-image": 2}
    assert report.patients == 2


def test_a_join_that_a_further_id_keeps_is_named(take: Callable[..., IngestReport]) -> None:
    with pytest.raises(ConfigurationError, match="1 pairs that persons") as error:
        take("S1,0012345,same", "S1,12345,same", "0012345,12345,different")
    assert error.value.code == "E-WHO"
    assert "data.accept" not in error.value.hint


@pytest.mark.parametrize(
    ("row", "expected"),
    {
        "nobody's id": ("S1,S2,same", "line 2: no file and no earlier intake has the second side"),
        "nobody's file": (
            "file:7.dcm,S1,same",
            "line 2: no file and no earlier intake has the first",
        ),
        "one id": ("S1,file:2.dcm,different", "line 2: both sides are one id"),
        "both": ("S1,12345,same\n12345,S1,different", "one pair is called both"),
    }.values(),
)
def test_a_row_that_cannot_be_followed_stops_the_intake(
    row: str, expected: str, take: Callable[..., IngestReport]
) -> None:
    with pytest.raises(ConfigurationError, match=expected) as error:
        take(row)
    assert error.value.code == "E-PERSONS-FILE"


def test_an_id_that_no_file_shows_any_more_can_still_be_parted(
    clinic: Path, take: Callable[..., IngestReport]
) -> None:
    take()
    (clinic / "data" / "0.dcm").unlink()
    assert take("0012345,12345,different").patients == 3
    known = PeopleFile(clinic / "people.sqlite").read()
    assert len(known.parted) == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    {
        "no header": (b"a,b,same\n", "line 1: expected the columns"),
        "empty": (b"", "line 1: expected the columns"),
        "a word": (b"first,second,decision\na,b,maybe\n", "line 2: the decision is neither"),
        "an empty side": (b"first,second,decision\na,,same\n", "line 2: a side is empty"),
        "itself": (b"first,second,decision\na,a ,same\n", "line 2: both sides are the same"),
        "a quote": (b'first,second,decision\n"a,b,same\n', "not a CSV row"),
        "no text": (b"first,second,decision\n\x81,b,same", "neither UTF-8 nor Windows-1252"),
    }.values(),
)
def test_a_file_that_is_no_table_of_decisions_is_refused(
    data: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "persons.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=expected):
        read_decisions(path)


def test_other_columns_separators_and_encodings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "persons.csv"
    path.write_bytes("note;Decision;First;Second\nM\xfcller;SAME;a;b\n\n".encode("cp1252"))
    (found,) = read_decisions(path)
    assert (found.line, found.first, found.second, found.same) == (2, "a", "b", True)


def test_the_first_problems_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "persons.csv"
    path.write_text("first,second,decision\n" + "a,b,no\n" * (MOST_PROBLEMS + 5))
    with pytest.raises(ConfigurationError, match="and 5 problems more"):
        read_decisions(path)
