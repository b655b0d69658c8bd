"""The scratch folder of a rehearsal: `rehearsal/` in the state folder, closed to other accounts.

In: a state folder. Out: a folder to work in, gone when the work ends; copies of the site's stores.
Guarantees: what a rehearsal trained or inverted is removed at its end, also after ctrl-C; after
`kill -9` at the next start of `rehearse` or `run`. The site's own stores are never written.
Not covered: pictures that somebody asked to keep: the next rehearsal, a withdrawal or a refresh
removes them.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from client.state.folder import State
from common.errors import EnvironmentFault, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.storage.lock import FolderLock

FOLDER = "rehearsal"
RUN = "run"
PICTURES = "pictures"
LOCK = "lock"
PICTURE_CAP_BYTES = 1 << 28
WHAT = "kohort-site rehearse"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Yield an empty folder of this rehearsal; raises EnvironmentFault (E-LOCKED) beside another.

    `root`: the state folder. What an earlier rehearsal left goes, its pictures too.
    """
    folder = root / FOLDER
    with disk_faults_named("cannot make", folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    with FolderLock(folder / LOCK, WHAT):
        _remove(folder / RUN)
        _remove(folder / PICTURES)
        with disk_faults_named("cannot make", folder / RUN):
            (folder / RUN).mkdir(mode=0o700)
        try:
            yield folder / RUN
        finally:
            _remove(folder / RUN)


def sweep_rehearsal(root: Path) -> None:
    """Remove what a killed rehearsal left, unless one is at work now."""
    folder = root / FOLDER
    if not (folder / RUN).is_dir():
        return
    try:
        with FolderLock(folder / LOCK, WHAT):
            _remove(folder / RUN)
    except EnvironmentFault as error:
        if error.code != "E-LOCKED":
            raise


def keep_pictures(root: Path, sheets: Sequence[Path]) -> list[Path]:
    """Copy the sheets of a rehearsal out of its scratch folder; return where they lie."""
    folder = root / FOLDER / PICTURES
    with disk_faults_named("cannot make", folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    for sheet in sheets:
        atomic_write(folder / sheet.name, read_capped(sheet, PICTURE_CAP_BYTES), mode=0o600)
    return [folder / sheet.name for sheet in sheets]


def remove_pictures(root: Path) -> None:
    """Remove the pictures that an earlier rehearsal kept, and what `check --pictures` found.

    Who is in them may have left.
    """
    _remove(root / FOLDER / PICTURES)
    _remove(State(root).domains)


def copy_store(source: Path, target: Path) -> None:
    """Copy one of the site's SQLite files as it is now, also while the daemon writes; none is none.

    Raises EnvironmentFault.
    """
    if not source.is_file():
        return
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as read,
            closing(sqlite3.connect(target)) as written,
        ):
            read.backup(written)
        target.chmod(0o600)
    except sqlite3.Error as error:
        raise EnvironmentFault(
            f"cannot copy {source}: {error}", hint="check the disk, the path and its owner"
        ) from error


def _remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    with disk_faults_named("cannot remove", folder):
        if folder.is_dir():
            shutil.rmtree(folder)
