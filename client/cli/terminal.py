"""What the commands print: results on standard output, progress on standard error.

Guarantees: a text of foreign origin, such as a file's name, cannot steer the terminal
(`printable`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from client.ingest.build import Phases
from client.state.jobs import Progress
from client.state.work import spell_duration

LINE_S = 30.0  # between two lines of a phase, where there is no terminal


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
def phase_bar(*, lines: bool = False) -> Iterator[Phases]:
    """Yield what shows (phase, done, total) on standard error, with the time that is left.

    A bar on a terminal. Elsewhere nothing, or with `lines` a line at the start and the end of each
    phase and every half minute between. They hold counts: only for what a person typed, never for
    a daemon, whose standard error is its log.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PhaseLines().show if lines else _show_nothing
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        name = ""

        def show(phase: str, done: int, total: int) -> None:
            nonlocal name
            if phase != name:
                name = phase
                bar.reset(task, description=phase)
            bar.update(task, completed=done, total=total or None)

        yield show


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Yield what shows (done, total) as a bar, if standard error is a terminal."""
    with phase_bar() as show:
        yield partial(show, title)


def _show_nothing(phase: str, done: int, total: int) -> None:
    """Show no progress."""


class PhaseLines:
    """Says on standard error how far a phase is. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = ""
        self._said = (0.0, 0)  # when, and how much was done then

    def show(self, phase: str, done: int, total: int) -> None:
        """Write a line where one is due; the pace is that since the line before."""
        now = self._clock()
        began = phase != self._phase
        then, before = self._said
        if not began and done < total and now - then < LINE_S:
            return
        line = f"{phase}: {done:,} of {total:,}"
        if not began and before < done < total:
            left_s = (total - done) * (now - then) / (done - before)
            line += f", {spell_duration(left_s)} left"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        self._phase = phase
        self._said = (now, done)
