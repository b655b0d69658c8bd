"""Each row of the page of input kinds says a kind, a rule, and a test that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "intake-kinds.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[str, ...]]:
    """The cells of each row of the page, without the heads of its tables."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]
    return [row for row in cells if row[0] not in ("Kind", "---")]


def names_in(path: Path) -> Iterator[str]:
    """The names of the tests in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def missing_of(row: tuple[str, ...]) -> str:
    """What is wrong with a row; nothing when it is whole."""
    if len(row) != 3 or not all(row):
        return "a row has a kind, a rule and a test"
    named = NAMED.findall(row[2])
    if not named:
        return "the row names no test"
    for file, test in named:
        path = ROOT / file
        if not path.is_file() or test not in set(names_in(path)):
            return f"there is no {file}::{test}"
    return ""


def test_each_row_names_a_test_that_exists() -> None:
    assert len(rows()) > 5
    wrong = {row[0]: missing_of(row) for row in rows() if missing_of(row)}
    assert wrong == {}


def test_no_kind_stands_twice() -> None:
    kinds = [row[0] for row in rows()]
    assert sorted(kinds) == sorted(set(kinds))


@pytest.mark.parametrize(
    "row",
    [
        ("a kind", "a rule"),
        ("a kind", "a rule", "no test"),
        ("a kind", "a rule", "`tests/docs/test_intake_kinds.py::test_that_is_not_there`"),
        ("a kind", "a rule", "`tests/docs/not_there.py::test_each_row_names_a_test_that_exists`"),
    ],
)
def test_a_row_that_is_not_whole_is_found(row: tuple[str, ...]) -> None:
    assert missing_of(row)
