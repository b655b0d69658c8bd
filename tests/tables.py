"""Writes a computed table into docs/promises/faults.md, between its two markers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.storage.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "promises" / "faults.md"


def write_block(name: str, markdown: str, page: Path = PAGE) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; nothing else changes."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{page.name}: needs {start.strip()} and then {end}, each once")
    before = text[: text.index(start) + len(start)]
    after = text[text.index(end) :]
    atomic_write(page, f"{before}{markdown.rstrip()}\n{after}".encode())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(_line(cells) for cells in lines) + "\n"


def _line(cells: Sequence[object]) -> str:
    """One line of a table."""
    texts = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"


def commit() -> str:
    """Return the short name of the commit that a table was computed on."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
