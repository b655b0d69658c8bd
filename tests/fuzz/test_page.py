"""The page of the long run shows its figures, of every target, and no fault."""

from __future__ import annotations

from tests.fuzz.page import PAGE, page_with_table, rows
from tests.fuzz.targets import TARGETS


def test_the_table_is_that_of_the_figures() -> None:
    text = PAGE.read_text()
    assert page_with_table(text) == text, "run `python -m tests.fuzz.page`"


def test_every_target_was_in_the_long_run_and_stood_it() -> None:
    found = rows()
    assert found.keys() == TARGETS.keys()
    assert {name for name, row in found.items() if row["faults"] or not row["returned"]} == set()
