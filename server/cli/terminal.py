"""What the commands print: results on standard output, progress and warnings on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from common.logs import LogSettings, log_to_standard_error
from server.rounds.record import Progress

Show = Callable[[Progress], None]
Say = Callable[[str], None]
log = logging.getLogger("kohort.server")


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
def study_progress(name: str, settings: LogSettings) -> Iterator[tuple[Show, Say]]:
    """Yield what shows a study's progress and what tells a person something.

    On a terminal the progress is a bar, and what is told stands above it. Elsewhere each change and
    each thing told is one event of the log.
    """
    log_to_standard_error(settings)
    if not Console(stderr=True).is_terminal or settings.format == "json":
        yield _log_progress(name), lambda text: log.info("%s", text)
        return
    with progress_bar(name) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            now = f"{progress.phase}: {progress.waiting}".rstrip(": ")
            bar.update(task, completed=progress.done, total=progress.total, description=now)

        def say(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False)

        yield show, say


def _log_progress(name: str) -> Show:
    """Return what logs a study's progress when it has changed."""
    last = ""

    def show(progress: Progress) -> None:
        nonlocal last
        now = f"{progress.phase}: {progress.waiting}".rstrip(": ")
        if now != last:
            last = now
            log.info("%s: %s of %s rounds: %s", name, progress.done, progress.total, now)

    return show
