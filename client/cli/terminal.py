"""What the commands print: results on standard output, progress on standard error.

Guarantees: a text of foreign origin, such as a file's name, cannot steer the terminal
(`printable`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from client.state.jobs import Progress


def write_line(text: str) -> None:
    """Print one line of a result."""
    sys.stdout.write(text + "\n")


def printable(text: str) -> str:
    """Return a text with what no terminal should be sent spelled out, as in `\\x1b`."""
    letters = []
    for letter in text:
        if not letter.isprintable():
            letter = letter.encode("unicode_escape").decode("ascii")
        letters.append(letter)
    return "".join(letters)


def write_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console | None = None
) -> None:
    """Print rows as a table on a terminal; elsewhere each as a line, its cells apart by tabs."""
    console = console or Console()
    if not console.is_terminal:
        for row in rows:
            write_line("\t".join(row))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Yield what shows (done, total) as a bar, if standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield show
