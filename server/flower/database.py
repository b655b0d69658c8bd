"""Keeps Flower's database small: nothing of a finished run stays, and its file is made compact.

In: the database of a SuperLink that does not run. Out: the same without what no run needs.
Guarantees: sites, their keys and runs stay; nothing of a run that may go on is touched.
Not covered: the size while it runs (server/front bounds what sites push).
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from server.flower.wire import forget_finished_runs

FREE_BYTES = 32 << 20  # unused pages that are not worth the time
log = logging.getLogger("kohort.link")


def tidy(path: Path) -> None:
    """Forget the messages and objects of finished runs, then give unused pages back.

    Freed pages still hold what sites sent; a compact file does not.
    """
    if not path.exists():
        return
    forget_finished_runs(str(path))
    try:
        _compact(path)
    except sqlite3.Error as error:
        # for lack of room on the disk: the database works as it is
        log.warning("database not made compact: %s", type(error).__name__)


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
