"""One row of the table of attacks, and how the rows are printed and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEAD = ("attacker", "attack", "door or path", "outcome", "held")


@dataclass(frozen=True)
class Row:
    """What was tried by whom, where, and what came of it. `count`: the attempts behind it."""

    attacker: str
    attack: str
    door: str
    outcome: str
    held: bool
    count: int = 1

    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        return (self.attacker, self.attack, self.door, self.outcome, "yes" if self.held else "NO")


def lines(rows: Iterable[Row]) -> list[str]:
    """Return the table as aligned text."""
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]


def count_line(rows: Sequence[Row]) -> str:
    """Return the last line: cases, attempts, ways in."""
    ways = sum(not row.held for row in rows)
    attempts = sum(row.count for row in rows)
    return f"attacks: {len(rows)} cases, {attempts} attempts, {ways} ways in"
