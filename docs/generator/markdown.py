"""Pages, tables and code blocks in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

NOTICE = "<!-- Written by `python -m docs.generator`: change the sources, not this page. -->"


def page(title: str, *lines: str) -> str:
    """Return a page's text."""
    return "\n".join([NOTICE, f"# {title}", "", *lines]).rstrip() + "\n"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return [*lines, ""]


def fenced(language: str, text: str) -> list[str]:
    """Return a code block."""
    return [f"```{language}", *text.rstrip().splitlines(), "```", ""]
