"""Reads persons.csv: the hospital's own word on who is one person and who is not.

In: a CSV file (UTF-8 or Windows-1252; commas, semicolons or tabs) with the columns first, second
and decision; the ids and files of an intake.
Out: pairs of names that are the same person, or different ones.
Guarantees: parsing is total: any bytes give decisions or a ConfigurationError with every problem; a
row that means nobody stops the intake; no cell stands in any message.
Not covered: whether the hospital is right.

  first, second  each a patient id as a header or the labels file states it; `ID^^^ISSUER` for the
                 id of one issuer; or `file:PATH` for whoever a file below the data folder is of
  decision       same or different
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from client.ingest.match import file_key
from client.ingest.persons import normalise_id, pseudonym
from common.errors import ConfigurationError
from common.storage.files import read_capped

COLUMNS = ("first", "second", "decision")
SAME = "same"
DIFFERENT = "different"
CAP_BYTES = 16 << 20
MOST_ROWS = 100_000
MOST_PROBLEMS = 20
FILE = "file:"
ISSUER = "^^^"
CODE = "E-PERSONS-FILE"
HINT = (
    "write one pair a row under the line first,second,decision; a decision is `same` or `different`"
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Decision:
    """One row: its line, the two sides as written, and whether they are one person."""

    line: int
    first: str
    second: str
    same: bool


@dataclass(frozen=True)
class Decided:
    """The decisions as pairs of names."""

    same: tuple[Pair, ...] = ()
    different: tuple[Pair, ...] = ()


@dataclass
class Stated:
    """What files state: names by id as written, and names by file below the source."""

    by_id: dict[str, set[str]] = field(default_factory=dict)
    by_file: dict[str, set[str]] = field(default_factory=dict)

    def add(self, issuer: str, identifier: str, name: str) -> None:
        """Note the name of an id, as itself and with its issuer."""
        self.by_id.setdefault(identifier, set()).add(name)
        if issuer:
            self.by_id.setdefault(f"{identifier}{ISSUER}{issuer}", set()).add(name)

    def add_files(self, files: Collection[str], names: Collection[str]) -> None:
        """Note whom files are of."""
        for file in files:
            self.by_file.setdefault(file_key(file), set()).update(names)


def read_decisions(path: Path) -> list[Decision]:
    """Return the rows of persons.csv.

    Raises ConfigurationError (E-PERSONS-FILE) with every problem at once.
    """
    text = _decode(path)
    first_line = text.partition("\n")[0]
    separator = max(",;\t", key=first_line.count)
    problems: list[str] = []
    found: list[Decision] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if sorted(set(header) & set(COLUMNS)) != sorted(COLUMNS):
            raise _refuse(path, ["line 1: expected the columns first, second and decision"])
        places = {name: header.index(name) for name in COLUMNS}
        for cells in reader:
            if any(cell.strip() for cell in cells):
                _take(reader.line_num, cells, places, found, problems)
            if len(found) > MOST_ROWS:
                raise _refuse(path, [f"more than {MOST_ROWS:,} rows"])
    except csv.Error:
        problems.append(f"line {reader.line_num}: not a CSV row")
    if problems:
        raise _refuse(path, problems)
    return found


def _decode(path: Path) -> str:
    """The text of the file."""
    data = read_capped(path, CAP_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        raise _refuse(path, ["neither UTF-8 nor Windows-1252 text"]) from None


def _take(
    line: int,
    cells: Sequence[str],
    places: Mapping[str, int],
    found: list[Decision],
    problems: list[str],
) -> None:
    """Add one row, or what is wrong with it."""
    values = []
    for name in COLUMNS:
        place = places[name]
        values.append(normalise_id(cells[place]) if place < len(cells) else "")
    first, second, decision = values
    decision = decision.lower()
    if not first or not second:
        problems.append(f"line {line}: a side is empty")
    elif first == second:
        problems.append(f"line {line}: both sides are the same")
    elif decision not in (SAME, DIFFERENT):
        problems.append(f"line {line}: the decision is neither `same` nor `different`")
    else:
        found.append(Decision(line, first, second, decision == SAME))


def _refuse(path: Path, problems: Sequence[str]) -> ConfigurationError:
    """The refusal of the file, with its first problems."""
    lines = [f"{path}: {problem}" for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"{path}: and {len(problems) - MOST_PROBLEMS} problems more")
    return ConfigurationError("\n".join(lines), problems=lines, hint=HINT, code=CODE)


def resolve_decisions(
    path: Path,
    decisions: Sequence[Decision],
    stated: Stated,
    key: bytes,
    known: Collection[str],
) -> Decided:
    """Return the decisions as pairs of names; `known`: names of earlier intakes.

    Raises ConfigurationError (E-PERSONS-FILE) for rows that mean nobody, or one name on both sides.
    """
    same: set[Pair] = set()
    different: set[Pair] = set()
    problems: list[str] = []
    for decision in decisions:
        sides = [_names(text, stated, key, known) for text in (decision.first, decision.second)]
        for number, names in zip(("first", "second"), sides, strict=True):
            if not names:
                problems.append(
                    f"line {decision.line}: no file and no earlier intake has the {number} side"
                )
        if sides[0] & sides[1]:
            problems.append(f"line {decision.line}: both sides are one id")
        pairs = {_sorted(pair) for pair in product(*sides)}
        if decision.same:
            same |= pairs
        else:
            different |= pairs
    if same & different:
        problems.append("one pair is called both same and different")
    if problems:
        raise _refuse(path, problems)
    return Decided(tuple(sorted(same)), tuple(sorted(different)))


def _names(text: str, stated: Stated, key: bytes, known: Collection[str]) -> set[str]:
    """The names that one side means; none for nobody's."""
    if text.startswith(FILE):
        return stated.by_file.get(file_key(text.removeprefix(FILE)), set())
    names = set(stated.by_id.get(text, ()))
    identifier, _, issuer = text.partition(ISSUER)
    for name in (pseudonym(key, "", text), pseudonym(key, issuer, identifier)):
        if name in known:
            names.add(name)
    return names


def _sorted(pair: Sequence[str]) -> Pair:
    first, second = sorted(pair)
    return first, second
