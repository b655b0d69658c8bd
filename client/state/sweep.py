"""Removes what a killed process left and nobody needs: temporary files, jobs of answered rounds.

In: a state folder whose lock is held, the time at which this process began.
Out: the same folder without its leftovers.
Guarantees: a temporary file goes only if it has the name of an atomic write and is older than this
process; a job folder goes only if the journal says that its round was answered.
Not covered: the inbox, which the fleet client sweeps.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from client.state.folder import State
from client.state.jobs import WEIGHTS

TEMPORARY = re.compile(r"\.part-[a-z0-9_]{8}")  # what kohort/files.py calls them


def sweep(state: State, before: float) -> None:
    """Remove leftovers; `before`: Unix time in seconds at which this process began."""
    for path in _temporary_files(state.root, before):
        path.unlink(missing_ok=True)
    for folder, trained in _answered_jobs(state):
        if trained:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            (folder / WEIGHTS).unlink(missing_ok=True)


def _temporary_files(root: Path, before: float) -> Iterator[Path]:
    """Files that an atomic write began and never named."""
    for folder, _, names in os.walk(root):
        for name in filter(TEMPORARY.fullmatch, names):
            path = Path(folder, name)
            facts = path.lstat()
            if S_ISREG(facts.st_mode) and facts.st_mtime < before:
                yield path


def _answered_jobs(state: State) -> Iterator[tuple[Path, bool]]:
    """The job folders of answered rounds that are still there, and whether the round trained."""
    entries = state.journal.entries()
    answered = {entry.key for entry in entries if entry.state == "answered"}
    for entry in entries:
        if entry.state not in ("reserved", "started") or entry.key not in answered:
            continue
        folder = state.jobs / str(entry.data["folder"])
        if folder.is_dir():
            yield folder, "/train/" in entry.key
