"""What the commands print: results on standard output, progress and warnings on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from server.rounds.record import Progress

Show = Callable[[Progress], None]
Say = Callable[[str], None]


def write(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text)


def progress_bar(title: str) -> Bar:
    """Return a progress bar on standard error; use it in a `with` statement."""
    return Bar(
        TextColumn(title),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )


@contextmanager
def study_progress(name: str) -> Iterator[tuple[Show, Say]]:
    """Yield what shows a study's progress and what prints a line above it.

    On a terminal the progress is a bar. Elsewhere each change is one line.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    is_terminal = Console(stderr=True).is_terminal
    last = ""
    with progress_bar(name) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            nonlocal last
            now = f"{progress.phase}: {progress.waiting}".rstrip(": ")
            bar.update(task, completed=progress.done, total=progress.total, description=now)
            if not is_terminal and now != last:
                last = now
                sys.stderr.write(f"{progress.done}/{progress.total} {now}\n")

        def say(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False)

        yield show, say
