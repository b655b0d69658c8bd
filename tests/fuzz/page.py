"""Writes the table of docs/promises/fuzz.md from fuzz.json: `python -m tests.fuzz.page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "promises"
FIGURES = FOLDER / "fuzz.json"
PAGE = FOLDER / "fuzz.md"
HEAD = """\
| parser of | inputs | a second | slowest, ms | memory, MiB (cap) | faults |
| --- | --- | --- | --- | --- | --- |
"""


def rows() -> dict[str, dict[str, Any]]:
    """Return the figures of the long run by target."""
    found: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text())
    return found


def table() -> str:
    """Return the table, most inputs first."""
    lines = []
    for name, row in sorted(rows().items(), key=lambda one: (-one[1]["inputs"], one[0])):
        memory = f"{row['peak_mib']:.0f} ({row['cap_mib']})"
        lines.append(
            f"| {name} | {row['inputs']:,} | {row['inputs_per_s']:,} | {row['slowest_ms']:.0f} "
            f"| {memory} | {row['faults']} |\n"
        )
    return HEAD + "".join(lines)


def page_with_table(text: str) -> str:
    """Return the page's text with the table of the figures in it."""
    start = text.index(HEAD)
    end = text.find("\n\n", start)
    return text[:start] + table().rstrip("\n") + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
