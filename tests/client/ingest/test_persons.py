"""client/ingest/persons.py: who is one person, and what of a person enters."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ingest.joins import group_by_person
from client.ingest.persons import (
    ImageRecord,
    aliases,
    choose_images,
    is_placeholder,
    normalise_id,
    pseudonym,
)
from client.ingest.quarantine import Reason

KEY = bytes(32)


def record(
    position: int,
    ids: str,
    digest: str,
    label: int = 0,
    side: int = 1,
    refusal: Reason | None = None,
) -> ImageRecord:
    return ImageRecord(position, tuple(ids), label, side, digest, refusal)


def test_ids_are_normalised_and_leading_zeros_stay() -> None:
    assert normalise_id(" 0042\0 ") == "0042"
    assert pseudonym(KEY, "A", "Mu\u0308ller") == pseudonym(KEY, " A", "M\u00fcller ")
    assert (
        len(
            {pseudonym(KEY, *parts) for parts in (("", "42"), ("", "042"), ("A", "42"), ("4", "2"))}
        )
        == 4
    )
    assert pseudonym(bytes(32), "", "42") != pseudonym(bytes([1]) * 32, "", "42")
    assert len(bytes.fromhex(pseudonym(KEY, "", "42"))) == 16


@pytest.mark.parametrize(
    "text",
    [
        *["", "-", "0", "0000", "XXX", "Anonymous", "N/A", "unknown", "NO ID", "9999999", "^^"],
        *["deleted", "DEIDENTIFIED", "De-Identified"],
        *["ANONYMIZED PATIENT", "Patient^Anonymous", "anonymizedpatient", "NO NAME", "not given"],
        *["Anonymous 000", "UNKNOWN, UNKNOWN", "Patient anonymis\u00e9", "unbekannter Patient"],
        *["1.23E+05", "1,23E+05", "1E+11", "4.5e+12"],
    ],
)
def test_placeholders(text: str) -> None:
    assert is_placeholder(text)


# an anonymiser's pseudonyms, names that hold a filler word, and ids that look like numbers
REAL = [
    "ANON 0017",
    "Anonymous123",
    "Patient 12",
    "TEST1",
    "ID 5",
    "DAVID",
    "IDA",
    "NANA",
    "NADINE",
]
REAL += ["TEST SMITH", "Patient Zero", "1E5", "E+05", "12E345", "1.23E5", "12.3E+05"]


@pytest.mark.parametrize("text", ["7", "P-0001", "00042", "MRN-01-0000001", "ANNA", "1111", *REAL])
def test_real_ids(text: str) -> None:
    assert not is_placeholder(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=1, max_size=12
    ),
    st.randoms(),
)
def test_persons_are_connected_components_in_any_order(
    links: list[tuple[str, str]], chance: object
) -> None:
    records = [record(i, name, digest) for i, (name, digest) in enumerate(links)]
    groups = group_by_person(records, ())
    assert sorted(s.position for group in groups for s in group) == list(range(len(links)))
    for a, b in permutations(groups, 2):
        assert not {n for s in a for n in s.pseudonyms} & {n for s in b for n in s.pseudonyms}
        assert not {s.digest for s in a} & {s.digest for s in b}
    chance.shuffle(records)  # type: ignore[attr-defined]
    assert {frozenset(g) for g in group_by_person(records, ())} == {frozenset(g) for g in groups}


def test_near_duplicates_join_and_a_chain_is_one_person() -> None:
    records = [
        record(i, name, digest) for i, (name, digest) in enumerate(zip("abcd", "wxyz", strict=True))
    ]
    assert sorted(map(len, group_by_person(records, [(0, 1), (1, 2)]))) == [1, 3]


def test_a_person_has_every_name_of_every_record() -> None:
    records = [record(0, "db", "x"), record(1, "a", "x")]
    assert aliases(records) == ("a", "b", "d")


def test_the_highest_label_wins_and_only_its_images_enter() -> None:
    person = [
        record(0, "a", "p", label=0),
        record(1, "a", "q", label=2),
        record(2, "b", "r", label=2),
    ]
    outcomes = choose_images(person, ordinal=True, one_eye=False)
    assert outcomes[0] is Reason.LOWER_LABEL
    assert [outcomes[i].label for i in (1, 2) if isinstance(outcomes[i], ImageRecord)] == [2, 2]  # type: ignore[union-attr]


def test_identical_pixels_count_once_with_their_highest_label() -> None:
    outcomes = choose_images(
        [record(0, "a", "p", label=0), record(1, "b", "p", label=2)],
        ordinal=True,
        one_eye=False,
    )
    entering = [outcome for outcome in outcomes.values() if isinstance(outcome, ImageRecord)]
    assert [s.label for s in entering] == [2]
    assert Reason.DUPLICATE in outcomes.values()


def test_without_order_a_conflict_excludes_the_person() -> None:
    person = [record(0, "a", "p", label=0), record(1, "a", "q", label=2)]
    assert set(choose_images(person, ordinal=False, one_eye=False).values()) == {
        Reason.CONFLICTING_LABELS
    }


def test_one_eye_enters_where_the_study_separates_them() -> None:
    person = [
        record(i, "a", digest, side=side)
        for i, (digest, side) in enumerate((("p", 1), ("q", 2), ("r", 1)))
    ]
    outcomes = choose_images(person, ordinal=True, one_eye=True)
    assert {s.laterality for s in outcomes.values() if isinstance(s, ImageRecord)} == {1}
    assert outcomes[1] is Reason.OTHER_SIDE
    assert all(
        isinstance(outcome, ImageRecord)
        for outcome in choose_images(person, ordinal=True, one_eye=False).values()
    )


def test_a_refused_image_still_tells_that_two_ids_are_one_person() -> None:
    records = [
        record(0, "a", "p"),
        record(1, "b", "q"),
        record(2, "b", "p", refusal=Reason.NO_LABEL),
    ]
    (person,) = group_by_person(records, ())
    outcomes = choose_images(person, ordinal=True, one_eye=False)
    assert outcomes[2] is Reason.NO_LABEL
    assert isinstance(outcomes[0], ImageRecord)
