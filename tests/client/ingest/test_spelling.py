"""client/ingest/spelling.py: which ids are one id in two spellings, and which never are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ingest.spelling import is_dummy_uid, same_ids, spell

Ids = tuple[str, ...]


def joined(ids: Ids) -> list[Ids]:
    """Which of these ids are one; an id is written as `issuer|id`, or without an issuer."""
    spellings = {}
    for text in ids:
        issuer, _, identifier = text.rpartition("|")
        spellings[text] = spell(issuer, identifier)
    return same_ids(spellings)


@pytest.mark.parametrize(
    "ids",
    {
        "case": ("ab-1234", "AB-1234"),
        "leading zeros": ("0012345", "12345"),
        "zeros behind letters": ("P0001", "p1", "P-01"),
        "zeros of each part": ("01-002", "1-2"),
        "a sign between letters and digits": ("AB-1234", "AB1234", "ab 1234", "AB.1234", "ab/1234"),
        "another sign at the same place": (
            "12.345-6",
            "12/345 6",
            "12_345_6",
            "12\u2013345\u20136",
        ),
        "no sign at all": ("19800101-1234", "198001011234"),
        "full width and no-break blanks": ("\uff11\uff12\uff13\uff14", "1234", "\u00a01234"),
        "invisible characters": ("12\u200b34", "1234"),
        "a number that a script wrote": ("4711.0", "4711"),
        "an authority in the id": ("12345^^^UKB", "12345", "12345^^^UKB&1.2.3&ISO", "UKB|12345"),
        "a check digit before it": ("12345^5^M10^UKB", "12345"),
        "an address": ("12345@clinic.example", "12345"),
        "an issuer as a word": ("12345-UKB", "12345", "UKB|12345", "12345 (ukb)"),
        "an issuer in two spellings": ("St. Mary|77", "st-mary|077"),
    }.values(),
)
def test_spellings_of_one_id_are_one(ids: Ids) -> None:
    assert joined(ids) == [tuple(sorted(ids))]


@pytest.mark.parametrize(
    "ids",
    {
        "numbers are not regrouped": ("1-23", "12-3"),
        "nobody knows which of two is meant": ("1-23", "12-3", "123"),
        "issuers keep ids apart": ("A|77", "B|77"),
        "nobody knows whose number it is": ("A|77", "B|77", "77"),
        "site and initials": ("01-ABC", "01-XYZ", "1"),
        "number and initials": ("001-JDO", "001-XYZ"),
        "names as ids": ("DOE^JOHN", "DOE^JANE"),
        "zeros inside a number": ("1002", "12"),
        "other numbers": ("12345", "12346", "123450", "A12345"),
        "children of one mother": ("4711-A", "4711-B", "4711"),
        "sex written as a sign": ("010190+1234", "010190-1234"),
        "signs alone": ("-", "--", "..."),
    }.values(),
)
def test_different_ids_stay_apart(ids: Ids) -> None:
    assert joined(ids) == []


def test_a_claim_that_another_join_settles_is_settled() -> None:
    """With and without the issuer, an id with a sign is one id, so its number has one claimant."""
    ids = ("12-345 UKB", "12-345", "12345")
    assert joined(ids) == [tuple(sorted(ids))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6), st.randoms())
def test_any_text_is_spelled_and_the_order_does_not_matter(
    texts: list[str], chance: object
) -> None:
    ids = tuple(dict.fromkeys(texts))
    mixed = list(ids)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert joined(ids) == joined(tuple(mixed))


def test_an_id_is_like_another_spelling_and_unlike_another_id() -> None:
    assert spell("", "0012345").is_like(spell("", "12345"))
    assert spell("", "12-345").is_like(spell("", "12345"))
    assert spell("", "12345").is_like(spell("UKB", "12345"))
    assert not spell("", "1-23").is_like(spell("", "12-3"))


@pytest.mark.parametrize("uid", ["", "0", "1.2", "1.2.3.4", "1.2.3.4.5.6.7.8.9.10", "1.1.1.1"])
def test_a_dummy_uid_names_nothing(uid: str) -> None:
    assert is_dummy_uid(uid)


@pytest.mark.parametrize("uid", ["2.25.7", "1.2.840.113619.2.55.3.1", "1.2.3.4.77"])
def test_a_uid_names_a_study(uid: str) -> None:
    assert not is_dummy_uid(uid)
