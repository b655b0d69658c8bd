"""Keeps Flower's database small: nothing of a finished run stays, its file is compact and capped.

In: the database of a SuperLink. Out: the same without what no run needs; whether more may come.
Guarantees: sites, their keys and runs stay; nothing of a run that may go on is touched.
Not covered: what one site may push (server/front).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from common.storage.files import sync_folder
from server.flower.wire import create_database, forget_finished_runs

FREE_BYTES = 32 << 20  # unused pages that are not worth the time
log = logging.getLogger("kohort.link")


def tidy(path: Path) -> None:
    """Forget the messages and objects of finished runs, then give unused pages back.

    Freed pages still hold what sites sent; a compact file does not. A database that is not there is
    made whole beside its name: one that was left half made would never open again.
    """
    if not path.exists():
        _create(path)
        return
    forget_finished_runs(str(path))
    try:
        _compact(path)
    except sqlite3.Error as error:
        # for lack of room on the disk: the database works as it is
        log.warning("database not made compact: %s", type(error).__name__)


def _create(path: Path) -> None:
    """Make the database under another name, and rename it."""
    part = path.with_name(f".part-{path.name}")
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    create_database(str(part))
    # all of it into the one file that is renamed
    _compact(part)
    os.replace(part, path)
    sync_folder(path.parent)


def _compact(path: Path) -> None:
    """Rewrite the file if much of it is unused."""
    database = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        page = int(database.execute("PRAGMA page_size").fetchone()[0])
        free = int(database.execute("PRAGMA freelist_count").fetchone()[0])
        if page * free > FREE_BYTES:
            database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()


class Room:
    """Whether the database of a running SuperLink may grow; free pages do not count."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most = most_bytes
        self._database: sqlite3.Connection | None = None
        self._told = False

    def is_left(self) -> bool:
        """Return whether less than the cap is in use; a file that cannot be asked has room."""
        try:
            left = self._used() < self._most
        except sqlite3.Error as error:
            # what the file lacks, the SuperLink itself says
            log.warning("size of the database not known: %s", type(error).__name__)
            return True
        if not left and not self._told:
            log.warning("E-QUOTA: limits.inbox_gib of server.yaml is reached: sites wait")
        self._told = not left
        return left

    def _used(self) -> int:
        """The bytes of pages that hold something."""
        if self._database is None:
            where = f"{self._path.resolve().as_uri()}?mode=ro"
            self._database = sqlite3.connect(where, uri=True, isolation_level=None, timeout=0.1)
        count = self._number("page_count") - self._number("freelist_count")
        return count * self._number("page_size")

    def _number(self, pragma: str) -> int:
        """One number that SQLite knows of the file."""
        assert self._database is not None
        return int(self._database.execute(f"PRAGMA {pragma}").fetchone()[0])
