"""No event is listed and never written: each stands in a call that notes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.audit_log.events import EVENTS, SERVER, SITE

ROOT = Path(__file__).parents[3]
WRITERS = {"note", "note_release"}  # the second one takes the event's name


def written(room: str) -> Iterator[str]:
    """Every text that a call which notes an event is given."""
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) in WRITERS:
                given = (part for value in node.args for part in ast.walk(value))
                yield from (str(one.value) for one in given if isinstance(one, ast.Constant))


def _name(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


@pytest.mark.parametrize(("room", "events"), [("client", SITE), ("server", SERVER)])
def test_every_listed_event_is_written_by_its_side(room: str, events: dict[str, object]) -> None:
    assert set(events) - set(written(room)) == set()


def test_an_event_of_both_sides_has_the_same_facts() -> None:
    assert all(EVENTS[name] == facts for name, facts in (*SITE.items(), *SERVER.items()))
