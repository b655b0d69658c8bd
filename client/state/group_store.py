"""Frozen groups of at least k distinct patients, and what was released of each, for good.

Guarantees:
1. A `Group` holds k or more distinct patients of one stratum; it cannot be built otherwise.
2. A patient is in at most one group of a `Grouping`.
3. A `GroupStore` freezes a patient into one group across all studies; what overlaps a frozen
   group without being that group is refused.
4. How a group was formed and every released image stand beside it before the image leaves; what
   artefacts.py forbids is not written.
Not covered: how groups are formed (client/synthesize/group.py).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from client.state.artefacts import Artefact, Limit, find_fault
from common.errors import Bug, EnvironmentFault, PolicyError, disk_faults_named
from common.storage.reserve import make_room
from common.wire.messages import canonical

LOCK_WAIT_S = 10
UNKNOWN = "unknown"  # how a group of version 0.1 was formed
VERSION = 2  # PRAGMA user_version; files of kohort 0.1 have 0
OLD_COPY = ".0.1.backup"  # suffix of the copy that `migrate` leaves beside an old file
GROUPED = """
CREATE TABLE IF NOT EXISTS grouped (
  token TEXT PRIMARY KEY, label INTEGER NOT NULL, laterality INTEGER NOT NULL, k INTEGER NOT NULL,
  formed_by TEXT NOT NULL DEFAULT 'unknown');
CREATE TABLE IF NOT EXISTS member (
  pseudonym TEXT PRIMARY KEY, token TEXT NOT NULL REFERENCES grouped);
CREATE TABLE IF NOT EXISTS artefact (
  number INTEGER PRIMARY KEY, token TEXT NOT NULL REFERENCES grouped, output INTEGER NOT NULL,
  study TEXT NOT NULL,
  label TEXT NOT NULL, modality TEXT NOT NULL, size_px INTEGER NOT NULL, channels INTEGER NOT NULL,
  event TEXT NOT NULL, sha256 TEXT NOT NULL, image BLOB NOT NULL,
  UNIQUE (token, output));
"""
# nothing in these tables is ever changed or removed
KEPT = """
CREATE TRIGGER IF NOT EXISTS {0}_kept BEFORE DELETE ON {0}
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS {0}_same BEFORE UPDATE ON {0}
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
SCHEMA = GROUPED + "".join(KEPT.format(table) for table in ("grouped", "member", "artefact"))
NEW_ARTEFACT = """
INSERT INTO artefact (token, output, study, label, modality, size_px, channels, event, sha256,
  image) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Stratum(NamedTuple):
    """What all images of a group share.

    `label`: position of the merged label in the study's strata. `laterality`: 0, 1 L, 2 R.
    """

    label: int
    laterality: int = 0


@dataclass(frozen=True)
class Group:
    """At least k distinct patients of one stratum; raises PolicyError below k (promise 1)."""

    members: tuple[str, ...]
    stratum: Stratum
    k: int

    def __post_init__(self) -> None:
        if self.k < 2:
            raise PolicyError(f"group: k is {self.k}; expected 2 or more", code="E-GROUP-SIZE")
        if len(set(self.members)) < max(self.k, len(self.members)):
            raise PolicyError(
                f"group: expected at least k={self.k} distinct patients, each once; got fewer",
                code="E-GROUP-SIZE",
            )
        object.__setattr__(self, "members", tuple(sorted(self.members)))
        object.__setattr__(self, "stratum", Stratum(*self.stratum))

    @property
    def token(self) -> str:
        """Digest of stratum and members: equal exactly when the two groups are identical."""
        text = "\n".join((f"{self.stratum.label},{self.stratum.laterality}", *self.members))
        return hashlib.sha256(b"kohort-group\0" + text.encode()).hexdigest()


@dataclass(frozen=True)
class Grouping:
    """Disjoint groups, and the patients in none of them (`suppressed`, which stay on site).

    Raises Bug on an overlap (promise 2).
    """

    groups: tuple[Group, ...]
    suppressed: tuple[str, ...]

    def __post_init__(self) -> None:
        everyone = [*chain.from_iterable(group.members for group in self.groups), *self.suppressed]
        if len(set(everyone)) < len(everyone):
            raise Bug("grouping: one patient in two places; expected each patient once")


class Frozen(NamedTuple):
    """A frozen group, the grouping mode that formed it ("unknown" in version 0.1), its images."""

    group: Group
    formed_by: str
    artefacts: tuple[Artefact, ...]


class GroupStore:
    """The site's frozen groups: append-only SQLite, on disk before a method returns (3, 4).

    A file of version 0.1 is migrated when it is opened, with a copy of the old one beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_faults_named("cannot open the group store", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        migrate(path)
        with name_store_faults(path):
            self._db = connect(path)
            if version_of(self._db) < VERSION:
                self._db.executescript(SCHEMA)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> GroupStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def freeze(self, grouping: Grouping, formed_by: str = UNKNOWN) -> None:
        """Write every group of `grouping` for good, all or none, without any image.

        A group that is frozen already is left alone. Raises PolicyError (E-GROUP-OVERLAP) when a
        group shares a patient with a frozen group and is not that group: the difference of their
        averages would be about one patient.
        """
        with name_store_faults(self.path), self._transaction():
            for group in grouping.groups:
                self._freeze_one(group, formed_by)

    def release(
        self, images: Mapping[Group, Sequence[Artefact]], formed_by: str, limit: Limit
    ) -> None:
        """Freeze the groups and keep what leaves of each, all or none; call it before it leaves.

        An image that is kept already changes nothing. Raises PolicyError: E-GROUP-OVERLAP as
        `freeze`, E-GROUP-ARTEFACT for an image that a group may not release (artefacts.py).
        """
        with name_store_faults(self.path), self._transaction():
            for group, artefacts in images.items():
                # what was released of the group before
                stored = self.released(group)
                fault = find_fault(stored, artefacts, limit)
                if fault:
                    raise PolicyError(f"groups: {fault}", code="E-GROUP-ARTEFACT")
                self._freeze_one(group, formed_by)
                self._keep(group.token, artefacts, stored or ())

    def released(self, group: Group) -> tuple[Artefact, ...] | None:
        """Return what was released of a frozen group, in order; None for one that is not frozen."""
        with name_store_faults(self.path):
            find = "SELECT 1 FROM grouped WHERE token = ?"
            if self._db.execute(find, (group.token,)).fetchone() is None:
                return None
            return self._artefacts(group.token)

    def groups(self) -> tuple[Group, ...]:
        """Return all frozen groups."""
        return tuple(frozen.group for frozen in self._read(with_images=False))

    def frozen(self) -> tuple[Frozen, ...]:
        """Return all frozen groups with how they were formed and what was released of them."""
        return self._read(with_images=True)

    def events(self) -> tuple[tuple[str, ...], ...]:
        """Return, for each group that was privatized, the events of all its noised images."""
        with name_store_faults(self.path):
            rows = self._db.execute(
                "SELECT token, event FROM artefact WHERE event != '' ORDER BY token, output"
            ).fetchall()
        found: dict[str, list[str]] = {}
        for token, event in rows:
            found.setdefault(token, []).append(event)
        return tuple(tuple(events) for events in found.values())

    def history(self) -> dict[str, list[bytes]]:
        """Return every entry of each part of the store, in the order in which it was written.

        An entry never changes, and a new one comes last: client/state/head.py relies on it.
        """
        with name_store_faults(self.path):
            rows = self._db.execute(
                "SELECT token, formed_by FROM grouped ORDER BY rowid"
            ).fetchall()
            pairs = self._db.execute("SELECT token, pseudonym FROM member ORDER BY 2").fetchall()
            kept = self._db.execute(
                "SELECT token, output, study, label, modality, size_px, channels, event, sha256 "
                "FROM artefact ORDER BY number"
            ).fetchall()
        members: dict[str, list[str]] = {}
        for token, pseudonym in pairs:
            members.setdefault(token, []).append(pseudonym)
        groups: list[bytes] = []
        for token, formed_by in rows:
            groups.append("\n".join([token, formed_by, *members.get(token, ())]).encode())
        return {"groups": groups, "artefacts": [canonical(list(row)) for row in kept]}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _read(self, with_images: bool) -> tuple[Frozen, ...]:
        """All frozen groups."""
        with name_store_faults(self.path):
            rows = self._db.execute(
                "SELECT token, label, laterality, k, formed_by FROM grouped ORDER BY token"
            ).fetchall()
            pairs = self._db.execute("SELECT token, pseudonym FROM member").fetchall()
            members: dict[str, list[str]] = {}
            for token, pseudonym in pairs:
                members.setdefault(token, []).append(pseudonym)
            found: list[Frozen] = []
            for token, label, side, k, formed_by in rows:
                group = Group(tuple(members.get(token, ())), Stratum(label, side), k)
                artefacts = self._artefacts(token) if with_images else ()
                found.append(Frozen(group, formed_by, artefacts))
        return tuple(found)

    def _artefacts(self, token: str) -> tuple[Artefact, ...]:
        """What was released of one group, in order; raises EnvironmentFault if it is damaged."""
        rows = self._db.execute(
            "SELECT image, size_px, channels, label, modality, event, study, sha256 "
            "FROM artefact WHERE token = ? ORDER BY output",
            (token,),
        )
        return tuple(self._artefact(row) for row in rows)

    def _artefact(self, row: tuple[Any, ...]) -> Artefact:
        """One stored image, compared with its digest."""
        data, size, channels, label, modality, event, study, sha256 = row
        whole = len(data) == size * size * channels
        if not whole or hashlib.sha256(data).hexdigest() != sha256:
            raise sqlite3.DatabaseError("a stored image differs from its SHA-256")
        image = np.frombuffer(data, np.uint8).reshape(size, size, channels)
        return Artefact(image, label, modality, event, study)

    def _keep(self, token: str, artefacts: Sequence[Artefact], stored: Sequence[Artefact]) -> None:
        """Write the images that are new, inside a transaction."""
        known = list(stored)
        for artefact in artefacts:
            if artefact in known:
                continue
            row = (
                token,
                len(known),
                artefact.study,
                artefact.label,
                artefact.modality,
                artefact.size_px,
                artefact.channels,
                artefact.event,
                artefact.sha256,
                artefact.image.tobytes(),
            )
            self._db.execute(NEW_ARTEFACT, row)
            known.append(artefact)

    def _freeze_one(self, group: Group, formed_by: str) -> None:
        """Write one group inside a transaction, unless exactly this group is frozen."""
        # frozen already, as exactly this group
        tokens = self._tokens_of(group.members)
        if set(tokens) == {group.token} and len(tokens) == len(group.members):
            return
        # a member is in another frozen group
        if tokens:
            raise PolicyError(
                "a group overlaps a frozen group without being identical to it",
                hint="let `settle` split the roster: frozen groups stay, new patients group apart",
                code="E-GROUP-OVERLAP",
            )
        row = (group.token, group.stratum.label, group.stratum.laterality, group.k, formed_by)
        self._db.execute("INSERT INTO grouped VALUES (?, ?, ?, ?, ?)", row)
        pairs = [(member, group.token) for member in group.members]
        self._db.executemany("INSERT INTO member VALUES (?, ?)", pairs)

    def _tokens_of(self, members: Sequence[str]) -> list[str]:
        """Tokens of the frozen groups that hold those members, one for each frozen member."""
        find = "SELECT token FROM member WHERE pseudonym = ?"
        tokens: list[str] = []
        for member in members:
            for row in self._db.execute(find, (member,)):
                tokens.append(row[0])
        return tokens

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, on disk when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def migrate(path: Path) -> Path | None:
    """Bring a file of version 0.1 to this version; returns the copy of the old one, or None.

    What was released of its groups is not known, so they are never released again. Raises
    EnvironmentFault for a file of a later version.
    """
    with name_store_faults(path), closing(connect(path)) as db:
        version = version_of(db)
        if version > VERSION:
            raise EnvironmentFault(
                f"group store {path}: version {version}, this program knows {VERSION}",
                hint="install the newer kohort again; never delete the file",
            )
        columns = [row[1] for row in db.execute("PRAGMA table_info(grouped)")]
        if version or not columns or "formed_by" in columns:
            return None
        # the copy first, whole and private
        backup = path.with_name(path.name + OLD_COPY)
        os.close(os.open(backup, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(backup)) as copy:
            db.backup(copy)
        db.execute("ALTER TABLE grouped ADD COLUMN formed_by TEXT NOT NULL DEFAULT 'unknown'")
        return backup


def version_of(db: sqlite3.Connection) -> int:
    """The version of an open file; 0 for a new one and for kohort 0.1."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for synced, append-only work."""
    make_room(path.parent)
    db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_WAIT_S)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


@contextmanager
def name_store_faults(path: Path) -> Iterator[None]:
    """SQLite's errors as this machine's fault, with the fix."""
    try:
        yield
    except (sqlite3.Error, UnicodeError) as error:
        what = f"group store {path}: {error}"
        if "full" in str(error):
            hint = "free some space there and start again"
            raise EnvironmentFault(what, hint=hint, code="E-DISK-FULL") from error
        hint = "restore the file from backup; never delete it"
        raise EnvironmentFault(what, hint=hint) from error
