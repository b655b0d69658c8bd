"""client/ingest/joins.py: what makes two ids one person, and what keeps them two."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from client.ingest.joins import MOST_PERSONS_A_STUDY, Joined, join_persons
from client.ingest.persons import ImageRecord
from client.ingest.spelling import spell
from client.state.people import People


def record(position: int, names: str, *studies: str, digest: str = "") -> ImageRecord:
    digest = digest or f"pixels {position}"
    return ImageRecord(position, tuple(names.split()), 0, 0, digest, studies=studies)


def joined(
    *records: ImageRecord,
    near: Sequence[tuple[int, int]] = (),
    known: People | None = None,
    dummies: Sequence[str] = (),
) -> Joined:
    """Join records whose names are ids."""
    names = {name for one in records for name in one.pseudonyms}
    spellings = {name: spell("", name) for name in names}
    return join_persons(records, near, known or People(), spellings, dummies)


def persons(found: Joined) -> list[list[int]]:
    return [[one.position for one in person] for person in found.persons]


@pytest.mark.parametrize(
    ("cause", "found"),
    {
        "file": joined(record(0, "a b"), record(1, "b")),
        "spelling": joined(record(0, "0012"), record(1, "12")),
        "picture": joined(record(0, "a", digest="p"), record(1, "b", digest="p")),
        "study": joined(record(0, "a", "s"), record(1, "b", "s")),
        "earlier": joined(record(0, "a"), record(1, "b"), known=People((("a", "b"),))),
    }.items(),
)
def test_each_cause_joins_two_ids_and_is_told(cause: str, found: Joined) -> None:
    assert persons(found) == [[0, 1]]
    assert {join.cause for join in found.joins} == {cause}
    assert {name for join in found.joins for name in join.names} in ({"a", "b"}, {"12", "0012"})


def test_an_id_in_another_spelling_joins_one_that_only_an_earlier_intake_saw() -> None:
    earlier = People((("12", "b"),), forms={"12": spell("", "12")})
    found = joined(record(0, "0012"), record(1, "b"), known=earlier)
    assert persons(found) == [[0, 1]]


def test_nothing_in_common_joins_nobody() -> None:
    found = joined(record(0, "a", "s"), record(1, "b", "t"))
    assert persons(found) == [[0], [1]]
    assert not found.joins


def test_a_third_id_joins_through_either() -> None:
    found = joined(record(0, "a", "s"), record(1, "b", "s", digest="p"), record(2, "c", digest="p"))
    assert persons(found) == [[0, 1, 2]]


def test_a_study_of_too_many_persons_joins_nobody_and_is_counted() -> None:
    many = [record(place, f"id{place + 1}x", "s") for place in range(MOST_PERSONS_A_STUDY + 1)]
    found = joined(*many)
    assert persons(found) == [[0], [1], [2]]
    assert found.crowded == (3,)


def test_spellings_in_a_study_are_one_person_before_it_is_counted() -> None:
    found = joined(
        record(0, "012", "s"), record(1, "12", "s"), record(2, "12 ", "s"), record(3, "b", "s")
    )
    assert persons(found) == [[0, 1, 2, 3]]
    assert found.crowded == ()


def test_a_dummy_study_joins_nobody_and_is_counted() -> None:
    found = joined(record(0, "a", "s"), record(1, "b", "s"), dummies=["s"])
    assert persons(found) == [[0], [1]]
    assert found.crowded == (2,)
    found = joined(record(0, "012", "s"), record(1, "12", "s"), dummies=["s"])
    assert [join.cause for join in found.joins] == ["spelling"]
    assert found.crowded == ()


APART = People(parted=frozenset({("a", "b")}))


def test_what_speaks_of_two_parted_ids_alone_joins_them_no_more() -> None:
    found = joined(record(0, "a", "s"), record(1, "b", "s"), known=APART)
    assert persons(found) == [[0], [1]]
    assert not found.joins
    known = People((("a", "b"),), parted=APART.parted)
    found = joined(record(0, "a"), record(1, "b"), known=known)
    assert persons(found) == [[0], [1]]
    assert found.still_one == 0
    assert not found.joins


def test_a_third_id_that_joins_parted_ids_is_counted() -> None:
    found = joined(record(0, "a", "s"), record(1, "c", "s", "t"), record(2, "b", "t"), known=APART)
    assert persons(found) == [[0, 1, 2]]
    assert found.still_one == 1


def test_one_picture_under_two_parted_ids_is_disputed_and_a_third_id_still_joins() -> None:
    records = [record(0, "a", digest="p"), record(1, "b"), record(2, "c"), record(3, "a")]
    found = joined(*records, near=[(0, 1)], known=APART)
    assert persons(found) == [[0, 3], [1], [2]]
    assert found.disputed == {0, 1}


def test_a_picture_of_three_ids_joins_those_that_are_not_apart() -> None:
    found = joined(
        record(0, "a"), record(1, "b"), record(2, "c"), near=[(0, 1), (1, 2)], known=APART
    )
    assert found.still_one == 1
    both = People(parted=frozenset({("a", "b"), ("a", "c")}))
    found = joined(
        record(0, "a"), record(1, "b"), record(2, "c"), near=[(0, 1), (1, 2)], known=both
    )
    assert persons(found) == [[0], [1, 2]]
    assert found.still_one == 0
