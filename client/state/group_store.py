"""Frozen groups of at least k distinct patients: the types, and the append-only file of them.

Guarantees:
1. A `Group` holds k or more distinct patients of one stratum; it cannot be built otherwise.
2. A patient is in at most one group of a `Grouping`.
3. A `GroupStore` freezes a patient into one group across all studies; what overlaps a frozen
   group without being that group is refused.
Not covered: how groups are formed (client/synthesize/group.py).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from common.errors import Bug, EnvironmentFault, PolicyError, disk_faults_named

LOCK_WAIT_S = 10
SCHEMA = """
CREATE TABLE IF NOT EXISTS grouped (
  token TEXT PRIMARY KEY, label INTEGER NOT NULL, laterality INTEGER NOT NULL, k INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS member (
  pseudonym TEXT PRIMARY KEY, token TEXT NOT NULL REFERENCES grouped);
CREATE TRIGGER IF NOT EXISTS grouped_kept BEFORE DELETE ON grouped
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS grouped_same BEFORE UPDATE ON grouped
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS member_kept BEFORE DELETE ON member
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS member_same BEFORE UPDATE ON member
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
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


class GroupStore:
    """The site's frozen groups: append-only SQLite, on disk before `freeze` returns (promise 3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_faults_named("cannot open the group store", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._name_faults():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_WAIT_S)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)

    def __enter__(self) -> GroupStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def freeze(self, grouping: Grouping) -> None:
        """Write every group of `grouping` for good, all or none; call it before any image leaves.

        A group that is frozen already is left alone. Raises PolicyError when a group shares a
        patient with a frozen group and is not that group: the difference of their averages would
        be about one patient.
        """
        with self._name_faults(), self._transaction():
            for group in grouping.groups:
                self._freeze_one(group)

    def groups(self) -> tuple[Group, ...]:
        """Return all frozen groups."""
        with self._name_faults():
            rows = self._db.execute(
                "SELECT token, label, laterality, k FROM grouped ORDER BY token"
            ).fetchall()
            pairs = self._db.execute("SELECT token, pseudonym FROM member").fetchall()
        members: dict[str, list[str]] = {}
        for token, pseudonym in pairs:
            members.setdefault(token, []).append(pseudonym)
        groups: list[Group] = []
        for token, label, side, k in rows:
            groups.append(Group(tuple(members.get(token, ())), Stratum(label, side), k))
        return tuple(groups)

    def history(self) -> dict[str, list[bytes]]:
        """Return every entry of each part of the store, in the order in which it was written.

        An entry never changes, and a new one comes last: client/state/head.py relies on it.
        """
        with self._name_faults():
            tokens = self._db.execute("SELECT token FROM grouped ORDER BY rowid").fetchall()
            pairs = self._db.execute("SELECT token, pseudonym FROM member ORDER BY 2").fetchall()
        members: dict[str, list[str]] = {}
        for token, pseudonym in pairs:
            members.setdefault(token, []).append(pseudonym)
        groups: list[bytes] = []
        for (token,) in tokens:
            groups.append("\n".join([token, *members.get(token, ())]).encode())
        return {"groups": groups}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _freeze_one(self, group: Group) -> None:
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
        row = (group.token, group.stratum.label, group.stratum.laterality, group.k)
        self._db.execute("INSERT INTO grouped VALUES (?, ?, ?, ?)", row)
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

    @contextmanager
    def _name_faults(self) -> Iterator[None]:
        """SQLite's errors as this machine's fault, with the fix."""
        try:
            yield
        except sqlite3.Error as error:
            what = f"group store {self.path}: {error}"
            if "full" in str(error):
                hint = "free some space there and start again"
                raise EnvironmentFault(what, hint=hint, code="E-DISK-FULL") from error
            hint = "restore the file from backup; never delete it"
            raise EnvironmentFault(what, hint=hint) from error
