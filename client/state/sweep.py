"""Removes what a killed process left and nobody needs: temporary files, jobs of answered rounds.

In: a state folder whose lock is held, the time at which this process began.
Out: the same folder without its leftovers.
Guarantees: a temporary file goes only if it has the name of an atomic write and is older than this
process; a job folder goes only if the journal says that its round was answered. A spool stays only
while its round waits for an answer.
Not covered: the inbox, which the fleet client sweeps.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG

from client.state.folder import State
from client.state.jobs import WEIGHTS
from client.state.spool import SUFFIX, remove_spool, spool_name
from common.storage.journal import Entry

TEMPORARY = re.compile(r"\.part-[a-z0-9_]{8}")  # what kohort/files.py calls them


def sweep(state: State, before: float) -> None:
    """Remove leftovers; `before`: Unix time in seconds at which this process began."""
    for path in _temporary_files(state.root, before):
        _remove(path)
    entries = state.journal.entries()
    for folder, trained in _answered_jobs(state, entries):
        if trained:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _remove(folder / WEIGHTS)
    for folder in _ended_spools(state, entries):
        remove_spool(folder)


def _remove(path: Path) -> None:
    """Remove a leftover; one that cannot be removed stays, and stops nobody's work."""
    with contextlib.suppress(OSError):
        path.unlink()


def _temporary_files(root: Path, before: float) -> Iterator[Path]:
    """Files that an atomic write began and never named."""
    for folder, _, names in os.walk(root):
        for name in filter(TEMPORARY.fullmatch, names):
            path = Path(folder, name)
            facts = path.lstat()
            if S_ISREG(facts.st_mode) and facts.st_mtime < before:
                yield path


def _ended_spools(state: State, entries: Sequence[Entry]) -> Iterator[Path]:
    """The spools of rounds that are answered, or that no entry names."""
    answered = {entry.key for entry in entries if entry.state == "answered"}
    open_spools: set[str] = set()
    for entry in entries:
        if entry.state in ("reserved", "started") and entry.key not in answered:
            open_spools.add(spool_name(str(entry.data["folder"])))
    for folder in state.jobs.glob(f"*{SUFFIX}"):
        if folder.name not in open_spools:
            yield folder


def _answered_jobs(state: State, entries: Sequence[Entry]) -> Iterator[tuple[Path, bool]]:
    """The job folders of answered rounds that are still there, and whether the round trained."""
    answered = {entry.key for entry in entries if entry.state == "answered"}
    for entry in entries:
        if entry.state not in ("reserved", "started") or entry.key not in answered:
            continue
        folder = state.jobs / str(entry.data["folder"])
        if folder.is_dir():
            yield folder, "/train/" in entry.key
