"""Who is one person and who withdrew, as values: every name counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state.people import People, PeopleFile, Spelling

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


# --- spellings and decisions, on disk


def spelled(*owns: str, claims: tuple[str, ...] = ()) -> Spelling:
    return Spelling(owns, claims)


def test_spellings_are_kept_and_find_their_person(tmp_path: Path) -> None:
    book = PeopleFile(tmp_path / "people.sqlite")
    book.state([["a"], ["b"]], {}, {"a": spelled("form a"), "b": spelled("b", claims=("form c",))})
    known = book.read()
    assert known.called("unseen", spelled("form a")) == (("a",),)
    assert known.called("unseen", spelled("form c")) == (("b",),)
    assert known.called("unseen", spelled("form d")) == ()
    # what is known is not written again
    assert book.state([["a"]], {}, {"a": spelled("form a")}) == known
    assert book.count == 1


def test_a_withdrawn_spelling_takes_out_whoever_is_called_so_later() -> None:
    forms = {"a": spelled("form a"), "b": spelled("b", claims=("form a",)), "c": spelled("c")}
    people = People((("a",), ("b",), ("c",)), {}, frozenset({"form a"}), forms)
    assert people.has_withdrawn(["a"])
    assert people.has_withdrawn(["b"])
    assert not people.has_withdrawn(["c"])


def test_the_latest_decision_on_a_pair_counts(tmp_path: Path) -> None:
    book = PeopleFile(tmp_path / "people.sqlite")
    book.state([["a", "b"]], {})
    assert book.decide((), [("b", "a")]).name_person(["a"]) == ("a",)
    assert book.decide((), [("a", "b")]) == book.read()
    assert book.count == 2
    # what joined them once joins them no more, however often a file shows it
    assert book.state([["a", "b"]], {}).name_person(["a"]) == ("a",)
    assert book.count == 2
    assert book.decide([("a", "b")], ()).name_person(["a"]) == ("a", "b")
    assert book.decide((), [("a", "b")]).parted == {("a", "b")}


def test_parted_ids_that_a_third_id_joins_stay_one_person_and_are_told(tmp_path: Path) -> None:
    """To count one person as two is the unsafe mistake."""
    book = PeopleFile(tmp_path / "people.sqlite")
    book.state([["a", "c"], ["b", "c"]], {})
    known = book.decide((), [("a", "b")])
    assert known.name_person(["a"]) == ("a", "b", "c")
    assert known.still_one() == [("a", "b")]


def test_who_withdrew_under_one_id_stays_out_and_the_other_of_the_two_comes_back(
    tmp_path: Path,
) -> None:
    book = PeopleFile(tmp_path / "people.sqlite")
    book.state([["a", "b"]], {})
    book.withdraw(["a"])
    assert book.read().has_withdrawn(["b"])
    known = book.decide((), [("a", "b")])
    assert known.has_withdrawn(["a"])
    assert not known.has_withdrawn(["b"])


def test_a_file_of_before_spellings_and_decisions_is_read(tmp_path: Path) -> None:
    book = PeopleFile(tmp_path / "people.sqlite")
    book._append("stated", {"persons": [["a", "b"]], "plain": {"issued": "a"}})
    assert book.read() == People((("a", "b"),), {"issued": "a"})
