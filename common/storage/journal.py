"""An append-only journal on disk: what happened to which key, in order.

In: (key, state, data). Out: entries in the order in which they were written.
Guarantees: a new file is for this account alone; an entry that `append` returned from survives
`kill -9` and a power cut; nothing is changed or removed.
Not covered: evidence of tampering, which the ledger has (client/state/ledger.py).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import EnvironmentFault, RefusedError, damage_named, disk_faults_named
from common.storage.reserve import make_room, write_with_reserve

MODE = 0o600
SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
  seq INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_key ON entry (key, seq);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    seq: int
    key: str
    state: str
    data: dict[str, Any]


class Journal:
    """A journal file; safe to use from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with disk_faults_named("cannot open the journal", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            make_room(path.parent)
            # SQLite gives its side files the mode that this one has when it opens it
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, MODE))
        try:
            self._db = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=10
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, UnicodeError) as error:
            raise EnvironmentFault(
                f"cannot open the journal {path}: {error}",
                hint="check the path, its owner and this user's rights",
            ) from error

    def append(self, key: str, state: str, data: Mapping[str, Any] | None = None) -> None:
        """Write one entry and wait until it is on disk."""
        text = json.dumps(dict(data or {}), sort_keys=True)
        write_with_reserve(self.path.parent, lambda: self._insert(key, state, text))

    def _insert(self, key: str, state: str, text: str) -> None:
        """Write one row, synced."""
        try:
            with self._lock:
                self._db.execute(
                    "INSERT INTO entry (key, state, data) VALUES (?, ?, ?)", (key, state, text)
                )
        except sqlite3.Error as error:
            code = "E-DISK-FULL" if "full" in str(error) else None
            raise EnvironmentFault(
                f"cannot write the journal {self.path}: {error}",
                hint="free some space there and start again; what was journaled is kept",
                code=code,
            ) from error

    def latest(self, key: str) -> Entry | None:
        """Return the newest entry of `key`, or None."""
        found = self._rows("WHERE key = ? ORDER BY seq DESC LIMIT 1", (key,))
        return found[0] if found else None

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return all entries whose key starts with `prefix`, oldest first."""
        return [entry for entry in self._rows("ORDER BY seq", ()) if entry.key.startswith(prefix)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _rows(self, clause: str, values: tuple[str, ...]) -> list[Entry]:
        damage = RefusedError(
            f"{self.path}: not the journal that was written",
            hint="put the newest copy of the whole state folder back; never delete this file",
            code="E-JOURNAL",
        )
        try:
            with self._lock:
                rows = self._db.execute(
                    f"SELECT seq, key, state, data FROM entry {clause}", values
                ).fetchall()
        except sqlite3.OperationalError as error:
            raise EnvironmentFault(
                f"cannot read the journal {self.path}: {error}",
                hint="check the disk, the path and its owner",
            ) from error
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise damage from error
        with damage_named(damage):
            return [_entry(row) for row in rows]


def _entry(row: tuple[Any, ...]) -> Entry:
    """One line; raises ValueError for anything but three texts, the last one a JSON object."""
    seq, key, state, text = row
    data = json.loads(text)
    if not isinstance(key, str) or not isinstance(state, str) or not isinstance(data, dict):
        raise ValueError("types")
    return Entry(seq, key, state, data)
