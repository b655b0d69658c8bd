"""The ledger's file: an append-only chain of entries, verified whenever it is read.

In: a kind and public data. Out: `Entry`, in order.
Guarantees: an appended entry is on disk, synced, when the transaction ends; an error changes
nothing; a changed byte in any entry is found and named.
Not covered: a file that was deleted or restored from an old backup (client/state/head.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import EnvironmentFault, RefusedError, damage_named, disk_faults_named
from common.storage.reserve import make_room
from common.wire.messages import canonical

GENESIS = "0" * 64
LOCK_WAIT_S = 5.0
SCHEMA = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "prev_hash TEXT, hash TEXT NOT NULL);",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;",
)


class Entry(NamedTuple):
    """One row: its number, kind, parsed body and hash."""

    seq: int
    kind: str
    data: dict[str, Any]
    hash: str

    @property
    def head(self) -> str:
        """`seq:hash`, which names the whole chain up to this entry."""
        return f"{self.seq}:{self.hash}"


def of_kind(entries: Iterable[Entry], kind: str) -> list[Entry]:
    """Return the entries of one kind, in order."""
    return [entry for entry in entries if entry.kind == kind]


@contextmanager
def transaction(path: Path) -> Iterator[tuple[sqlite3.Connection, list[Entry]]]:
    """Yield the verified entries under a write lock; commits on success, synced.

    Raises RefusedError (E-LEDGER) if damaged, EnvironmentFault for a lock or a full disk.
    """
    make_room(path.parent)
    with _name_faults(path):
        # only the site's account may read it
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        connecting = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
        with closing(connecting) as connection:
            connection.text_factory = bytes
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection, _read(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def append(
    connection: sqlite3.Connection, entries: list[Entry], kind: str, data: dict[str, Any]
) -> Entry:
    """Add one entry to the chain inside a transaction, and return it.

    The tables come with the first entry, in one commit: none is ever empty.
    """
    previous = GENESIS
    if entries:
        previous = entries[-1].hash
    else:
        for statement in SCHEMA:
            connection.execute(statement)
    number = len(entries) + 1
    body = canonical(data)
    digest = _digest(previous, number, kind.encode(), body)
    row = (number, kind, body.decode(), previous, digest)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    connection.execute(f"PRAGMA user_version={number}")
    return Entry(number, kind, data, digest)


def _read(connection: sqlite3.Connection) -> list[Entry]:
    """All entries, the chain verified; an empty file has none, and reading leaves it empty."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return []
    entries: list[Entry] = []
    previous = GENESIS
    rows = connection.execute("SELECT seq, kind, body, prev_hash, hash FROM entries ORDER BY seq")
    # every entry carries the hash of the one before
    for number, row in enumerate(rows, 1):
        entries.append(_verify_row(number, row, previous))
        previous = entries[-1].hash
    # the number of entries is stored apart, so that a missing last entry is found
    if connection.execute("PRAGMA user_version").fetchone()[0] != len(entries) or not entries:
        raise _damage(len(entries) + 1)
    return entries


def _verify_row(number: int, row: tuple[Any, ...], previous: str) -> Entry:
    """The entry of one row, or a refusal that names it."""
    seq, kind, body, prev_hash, digest = row
    if seq != number or not all(isinstance(part, bytes) for part in row[1:]):
        raise _damage(number)
    if prev_hash != previous.encode() or digest != _digest(previous, number, kind, body).encode():
        raise _damage(number)
    with damage_named(_damage(number)):
        return Entry(number, kind.decode(), json.loads(body), digest.decode())


def _digest(previous: str, number: int, kind: bytes, body: bytes) -> str:
    """SHA-256 over previous hash, number, kind and body, joined by newlines."""
    text = b"\n".join([previous.encode(), str(number).encode(), kind, body])
    return hashlib.sha256(text).hexdigest()


def _damage(number: int) -> RefusedError:
    """The refusal of a chain that breaks at an entry."""
    return RefusedError(
        f"ledger: entry {number} is not what was written",
        hint="restore the newest intact copy of the ledger; "
        "training stays closed until it verifies",
        code="E-LEDGER",
    )


@contextmanager
def _name_faults(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as ours, each with the fix."""
    try:
        with disk_faults_named("ledger", path):
            yield
    except sqlite3.DatabaseError as error:
        raise _named_fault(path, error) from error
    except UnicodeError as error:  # of a damaged file even SQLite's message is damaged
        hint = "restore the newest intact copy"
        raise RefusedError(f"ledger {path}: damaged", hint=hint, code="E-LEDGER") from error


def _named_fault(path: Path, error: sqlite3.DatabaseError) -> EnvironmentFault | RefusedError:
    """A lock, a full disk or other I/O as this machine's fault; anything else as damage."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        hint = "another kohort-site uses it: wait for it, or stop it"
        code = "E-LEDGER-LOCKED"
    elif name.startswith("SQLITE_FULL"):
        hint = "free some space there and start again; nothing was spent"
        code = "E-DISK-FULL"
    elif name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        hint = "check the disk, the path and its owner; nothing was spent"
        code = "E-ENVIRONMENT"
    else:
        hint = "restore the newest intact copy"
        return RefusedError(f"ledger {path}: damaged ({error})", hint=hint, code="E-LEDGER")
    return EnvironmentFault(f"ledger {path}: {error}", hint=hint, code=code)
