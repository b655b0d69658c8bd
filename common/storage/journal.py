"""An append-only journal on disk: what happened to which key, in order.

In: (key, state, data). Out: entries in the order in which they were written.
Guarantees: a new file is for this account alone; an entry that `append` returned from survives
`kill -9` and a power cut; nothing is changed or removed. A query takes time for the entries that it
returns, and for those that are new since this process looked last, however long the journal is.
Not covered: evidence of tampering, which the ledger has (client/state/ledger.py).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import EnvironmentFault, RefusedError, damage_named, disk_faults_named
from common.storage.reserve import make_room, write_with_reserve

MODE = 0o600
BEFORE_ALL = -(1 << 63)  # the number of an entry before any other
HIGHEST = "\U0010ffff"  # no key goes on with a character above this one
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
        self._lock = threading.RLock()
        self._checked = BEFORE_ALL  # every row up to this one is whole
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
            hint = "check the path, its owner and this user's rights"
            raise _fault(f"cannot open the journal {path}", error, hint) from error

    def append(self, key: str, state: str, data: Mapping[str, Any] | None = None) -> None:
        """Write one entry and wait until it is on disk."""
        text = json.dumps(dict(data or {}), sort_keys=True)
        write_with_reserve(self.path.parent, lambda: self._insert(key, state, text))

    def _insert(self, key: str, state: str, text: str) -> None:
        """Write one row, synced."""
        self._write("INSERT INTO entry (key, state, data) VALUES (?, ?, ?)", (key, state, text))

    def _write(self, statement: str, values: tuple[str, ...] = ()) -> None:
        """Run one statement that changes the file."""
        try:
            with self._lock:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            hint = "check the disk, the path and its owner; what was journaled is kept"
            raise _fault(f"cannot write the journal {self.path}", error, hint) from error

    def append_after(
        self, key: str, state: str, make: Callable[[Sequence[Entry]], Mapping[str, Any]]
    ) -> None:
        """Write one entry with the data that `make` gives for all entries before it.

        No other process writes between the two. What `make` raises leaves the journal as it was.
        """
        write_with_reserve(self.path.parent, lambda: self._insert_after(key, state, make))

    def _insert_after(
        self, key: str, state: str, make: Callable[[Sequence[Entry]], Mapping[str, Any]]
    ) -> None:
        """Read, make and write under SQLite's own lock, and this process's."""
        with self._lock:
            self._write("BEGIN IMMEDIATE")
            try:
                self._insert(key, state, json.dumps(dict(make(self.entries())), sort_keys=True))
                self._write("COMMIT")
            finally:
                # a full disk ends the transaction by itself
                if self._db.in_transaction:
                    self._write("ROLLBACK")

    def latest(self, key: str) -> Entry | None:
        """Return the newest entry of `key`, or None."""
        found = list(self._rows("WHERE key = ? ORDER BY seq DESC LIMIT 1", (key,)))
        return found[0] if found else None

    def entries(self, prefix: str = "", after: int = 0) -> list[Entry]:
        """Return all entries whose key starts with `prefix`, oldest first.

        `after`: only those that were written after the entry of this number.
        """
        if prefix and not after:
            self._check_new()
            found = self._rows(
                "WHERE key >= ? AND key <= ? ORDER BY seq", (prefix, prefix + HIGHEST)
            )
        else:
            found = self._rows("WHERE seq > ? ORDER BY seq", (after or BEFORE_ALL,))
        return [entry for entry in found if entry.key.startswith(prefix)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _check_new(self) -> None:
        """Read the rows that are new since the last time: a damaged one is refused by any query."""
        for entry in self._rows("WHERE seq > ? ORDER BY seq", (self._checked,)):
            self._checked = entry.seq

    def _rows(self, clause: str, values: tuple[str | int, ...]) -> Iterator[Entry]:
        """Yield the entries of a query."""
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
            raise _damage(str(self.path)) from error
        for row in rows:
            with damage_named(_damage(f"{self.path}: entry {row[0]}")):
                entry = _entry(row)
            yield entry


def _fault(what: str, error: Exception, hint: str) -> EnvironmentFault:
    """A full disk by its own code and fix; anything else with `hint`."""
    code = None
    if "full" in str(error):
        hint = "free some space there and start again; what was journaled is kept"
        code = "E-DISK-FULL"
    return EnvironmentFault(f"{what}: {error}", hint=hint, code=code)


def _damage(where: str) -> RefusedError:
    """The refusal of a file, or of its first entry that cannot be read."""
    return RefusedError(
        f"{where}: not the journal that was written",
        hint="put the newest copy of the whole state folder back; never delete this file",
        code="E-JOURNAL",
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    """One line; raises ValueError for anything but three texts, the last one a JSON object."""
    seq, key, state, text = row
    data = json.loads(text)
    if not isinstance(key, str) or not isinstance(state, str) or not isinstance(data, dict):
        raise ValueError("types")
    return Entry(seq, key, state, data)
