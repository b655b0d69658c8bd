"""The tables of `make attacks` as Markdown, for docs/promises/faults.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.attacks.load import Figures
from tests.attacks.rows import Row, count_line
from tests.tables import table

OUTSIDER = "outsider with "


def page(kept: Mapping[str, Any]) -> str:
    """Return everything between the markers, from what `python -m tests.attacks` kept."""
    rows = [Row(**row) for part in kept.values() for row in part["rows"]]
    figures = [Figures(**one) for part in kept.values() for one in part["figures"]]
    commits = ", ".join(f"`{name}`" for name in dict.fromkeys(p["commit"] for p in kept.values()))
    parts = [
        f"`make attacks`, on commit {commits}: {count_line(rows).partition(': ')[2]}.\n",
        *outsiders(rows),
        *load(figures),
        "### One hostile site of three\n\nThe study completes with the other two in every case. "
        "`kohort-server status` and the release name the site, with the code of its fault where "
        "there is one. A site without a code cannot be told from a slow one, and is not waited "
        "for.\n",
        table(("what it sends", "outcome"), cells(rows, "one site of three")),
        "### A hostile server\n\nAgainst the daemon of a hospital, over TLS. Codes leave and "
        "nothing else; nothing is computed or spent; afterwards an honest question is answered.\n",
        table(("door", "what it does", "what the hospital answers, or its state"), told(rows)),
    ]
    return "\n".join(parts)


def cells(rows: Iterable[Row], attacker: str) -> list[tuple[str, str]]:
    """The attacks of one attacker, and what came of them."""
    return [(row.attack, marked(row)) for row in rows if row.attacker == attacker]


def told(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """The attacks of servers, by door."""
    found = [row for row in rows if row.attacker == "a hostile server"]
    return [(row.door, row.attack, marked(row)) for row in found]


def outsiders(rows: Sequence[Row]) -> list[str]:
    """A table a front: who knocks, at what, and the answers with their number."""
    parts = []
    mine = [row for row in rows if row.attacker.startswith(OUTSIDER)]
    for front in dict.fromkeys(row.door for row in mine):
        here = [row for row in mine if row.door == front]
        kinds = list(dict.fromkeys(row.attack for row in here))
        names = list(dict.fromkeys(row.attacker for row in here))
        found = {(row.attacker, row.attack): marked(row) for row in here}
        lines = [
            (name.removeprefix(OUTSIDER), *(found[name, kind] for kind in kinds)) for name in names
        ]
        parts.append(f"### Outsiders, front `{front}`\n\nAnswers, and how often each came.\n")
        parts.append(table(("who knocks", *kinds), lines))
    rest = [row for row in rows if row.attacker in ("all of them", "another user of the machine")]
    after = [(row.attacker, row.attack, row.door, marked(row)) for row in rest]
    return [*parts, table(("who", "tries to", "where", "outcome"), after)]


def load(figures: Sequence[Figures]) -> list[str]:
    """The table of what one laptop can send."""
    if not figures:
        return []
    lines = [
        (
            one.front,
            one.load,
            f"{one.superlink_idle_mb:.0f} → {one.superlink_peak_mb:.0f}",
            f"{one.front_idle_mb:.0f} → {one.front_peak_mb:.0f}",
            one.rounds_closed,
            f"{one.longest_round_s:.1f}",
            told_of(one),
        )
        for one in figures
    ]
    head = (
        "front",
        "load",
        "SuperLink, MB: idle → most",
        "front, MB",
        "rounds closed",
        "longest round, s",
        "answers",
    )
    text = (
        "### One laptop\n\nThree honest sites train meanwhile. "
        "Sender, server and sites share two cores.\n"
    )
    return [text, table(head, lines)]


def told_of(one: Figures) -> str:
    """The answers to a load, and how much of it was sent."""
    return ", ".join(f"{name}: {count}" for name, count in sorted(one.answers.items()))


def marked(row: Row) -> str:
    """An outcome; one that is a way in stands out."""
    return row.outcome if row.held else f"**{row.outcome}**"
