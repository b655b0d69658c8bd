"""client/ingest/words.py: sides in several languages, and never a guess."""

from __future__ import annotations

import pytest

from client.ingest import words
from client.ingest.words import proposed_column, side_of

LEFT = "L left LEFT Left-eye OS O.S. oi OG LE links linkes·Auge gauche œil·gauche ŒIL·GAUCHE "
RIGHT = "R right od OD O.D. RE rechts rechtes·Auge droite œil·droit derecho ojo·derecho destra "


@pytest.mark.parametrize("word", [*LEFT.split(), *"izquierdo sinistra vänster venstre".split()])
def test_left_in_many_words(word: str) -> None:
    assert side_of(word.replace("·", " ")) == words.LEFT


@pytest.mark.parametrize("word", [*RIGHT.split(), *"direito höger højre oikea 右".split()])
def test_right_in_many_words(word: str) -> None:
    assert side_of(word.replace("·", " ")) == words.RIGHT


@pytest.mark.parametrize("word", ["", " ", "-", "?", "OU", "R/L", "beide Augen", "n/a", "unknown"])
def test_both_or_not_said_is_no_side(word: str) -> None:
    assert side_of(word) == words.UNKNOWN_SIDE


@pytest.mark.parametrize(
    "word", ["1", "2", "R2", "P-17", "Müller", "LR", "lefft", "PA", "eye", "G"]
)
def test_any_other_word_is_unknown(word: str) -> None:
    assert side_of(word) is None


def test_no_word_means_two_things() -> None:
    assert not words.LEFT_WORDS & words.RIGHT_WORDS
    assert not (words.LEFT_WORDS | words.RIGHT_WORDS) & (words.OPEN_WORDS | words.EYE_WORDS)
    names = [name for known in words.OFTEN_CALLED.values() for name in known]
    assert len(set(names)) == len(names)


def test_a_name_of_a_column_is_proposed_where_it_is_common() -> None:
    assert proposed_column("Patienten-ID") == "patient"
    assert proposed_column("Latéralité") == "laterality"
    assert proposed_column("MRN-0001") is None
