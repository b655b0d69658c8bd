"""Who is one person and who withdrew, as values: every name counts."""

from __future__ import annotations

import pytest

from client.state.people import People

LINKED = People(
    persons=(("a", "b"), ("b", "c"), ("d",), ("issued",)),
    plain={"issued": "plain"},
)


@pytest.mark.parametrize("withdrawn", ["a", "b", "c"])
@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_who_withdrew_under_one_name_is_out_under_every_linked_name(
    withdrawn: str, asked: str
) -> None:
    people = People(LINKED.persons, LINKED.plain, frozenset({withdrawn}))
    assert people.has_withdrawn((asked,))
    assert not people.has_withdrawn(("d",))
    assert not people.has_withdrawn(("issued",))
    assert people.name_person((asked,)) == ("a", "b", "c")


def test_who_withdrew_by_an_id_without_its_issuer_is_out_under_the_id_with_it() -> None:
    """Also where no file has shown the id in that form."""
    people = People(LINKED.persons, LINKED.plain, frozenset({"plain"}))
    assert people.has_withdrawn(("issued",))
    assert not people.has_withdrawn(("a",))


def test_an_id_without_its_issuer_is_out_under_every_name_of_its_person() -> None:
    people = People((("a", "issued"),), {"issued": "plain"}, frozenset({"plain"}))
    assert people.has_withdrawn(("a",))
