"""The site's privacy ledger: an append-only, hash-chained, fully synced list of everything that was ever spent.

In: a mechanism before its noise is drawn; the SHA-256 of what came of it. Out: a `Reservation`, or a refusal; a report.
Guaranteed: a reservation is on disk before it is handed out and nothing gives it back (a crash counts as spent); the
epsilon of all reservations stays within the site's own cap, by PLD and, from the second plan on, also by Rényi DP at an
order fixed at `open`; a changed byte in any entry is found and named; rows hold public constants alone (no count, index or
seed).
Not: a ledger restored from an old backup or deleted (compare with the head the server countersigned: `refuse_if_behind`),
or that the reserved mechanism is the one that runs (client/learn/private_step.py compares them). One ledger covers the
whole site: every patient is assumed to take part in every event.

Entries: open {cohort, delta, order}, reserve {event, plan, cap, accountant}, commit {reservation, artefact},
declare {event, plan};
hash = SHA-256(previous hash ‖ seq ‖ kind ‖ body). Source: methods/dp-training.md, section 5.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ConfigurationError, EnvironmentFault, PolicyError, RefusedError
from common.privacy.accounting import SAMPLER_SHARE, Spent, epsilon_rdp, merged, spend
from common.privacy.mechanisms import Mechanism, mechanism_from
from common.wire.messages import canonical

FORMAT = "kohort-ledger/1"
GENESIS = "0" * 64
LOCK_WAIT_S = 5.0
SCHEMA = """
CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, prev_hash TEXT, hash TEXT NOT NULL);
CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class Entry(NamedTuple):
    """One row: its number, kind, parsed body and hash."""

    seq: int
    kind: str
    data: dict[str, Any]
    hash: str


@dataclass
class Reservation:
    """Steps that the ledger holds as spent. `take()` hands out one at a time; `id` is the ledger entry."""

    id: int
    steps: int
    event: Mechanism
    taken: int = field(default=0, init=False)

    def take(self) -> None:
        """Use one step; raises `PolicyError` (E-EXHAUSTED) when none is left."""
        if self.taken >= self.steps:
            raise PolicyError(
                f"ledger: reservation {self.id}: all {self.steps} steps are used",
                code="E-EXHAUSTED",
            )
        self.taken += 1

    def to_json(self) -> str:
        """The reservation for a child process, with the steps that are left."""
        data = {
            "id": self.id,
            "steps": self.steps - self.taken,
            "event": json.loads(self.event.event()),
        }
        return canonical(data).decode()

    @classmethod
    def from_json(cls, text: str) -> "Reservation":
        """The reservation in `to_json`'s text; raises `RefusedError` for anything else."""
        try:
            data = json.loads(text)
            number, steps, event = (
                data["id"],
                data["steps"],
                mechanism_from(json.dumps(data["event"])),
            )
            if (
                len(data) != 3
                or type(number) is not int
                or type(steps) is not int
                or not 0 <= steps <= event.steps
            ):
                raise ValueError("fields")
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(
                "reservation: expected id, steps and event as the ledger wrote them"
            ) from error
        return cls(number, steps, event)


class PracticeReservation:
    """Steps without a ledger, for tests with repeatable noise; the private step refuses it with production noise."""

    def __init__(self, event: Mechanism) -> None:
        self.event = event
        self.steps = event.steps
        self.taken = 0

    def take(self) -> None:
        """Use one step; raises `PolicyError` (E-EXHAUSTED) when none is left."""
        if self.taken >= self.steps:
            raise PolicyError(
                f"practice reservation: all {self.steps} steps are used", code="E-EXHAUSTED"
            )
        self.taken += 1


@dataclass(frozen=True)
class LedgerReport:
    """What was spent: merged mechanisms, epsilon by each accountant, the cap, what is left, and what is recorded outside it."""

    cohort: str
    head: str
    cap_epsilon: float
    spent: Spent
    mechanisms: tuple[Mechanism, ...]
    declared: tuple[Mechanism, ...]
    reserved: int
    committed: int

    @property
    def remaining(self) -> float:
        """Cap minus epsilon by PLD."""
        return max(0.0, self.cap_epsilon - self.spent.pld)

    def to_text(self) -> str:
        """The report as printed."""
        prv = "" if self.spent.prv is None else f", PRV {self.spent.prv:.3f}"
        return "\n".join(
            [
                f"ledger: {self.reserved} reserved, {self.committed} committed, head {self.head[:20]}",
                *(f"  {mechanism.statement()}" for mechanism in self.mechanisms),
                f"  epsilon per patient: PLD {self.spent.pld:.3f}, RDP {self.spent.rdp:.3f}{prv} at delta {self.spent.delta:g}"
                f" + sampler {self.spent.sampler_delta:.1g}",
                f"  cap {self.cap_epsilon:g}, remaining {self.remaining:.3f}",
                *(
                    f"  recorded, not composed: {mechanism.statement()}"
                    for mechanism in self.declared
                ),
            ]
        )


class Ledger:
    """The ledger file of one site. Every call opens, verifies and closes it; two processes may use it."""

    def __init__(
        self, path: Path, cap_epsilon: float, delta: float, cohort: str, filter_order: float
    ) -> None:
        self._path = path
        self._cap = cap_epsilon
        self._opening: dict[str, Any] = {
            "format": FORMAT,
            "cohort": cohort,
            "delta": delta,
            "order": filter_order,
        }

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cap_epsilon: float,
        delta: float,
        cohort: str = "",
        filter_order: float = 4.0,
    ) -> "Ledger":
        """The verified ledger at `path`, created if missing.

        `cap_epsilon`: the site's own policy, may change; `delta`, `filter_order` and `cohort` (fingerprint of the pseudonym key)
        are fixed by the first opening. Raises `PolicyError` (E-COHORT) if they differ, `RefusedError` (E-LEDGER) if damaged,
        `EnvironmentFault` for a lock or a full disk.
        """
        if not (0.0 < cap_epsilon < 1e6 and 0.0 < delta < 1.0 and filter_order > 1.01):
            raise ConfigurationError(
                f"ledger: expected cap > 0, 0 < delta < 1, order > 1, got {cap_epsilon}, {delta}, {filter_order}"
            )
        ledger = cls(path, cap_epsilon, delta, cohort, filter_order)
        with ledger._transaction() as (connection, entries):
            if not entries:
                _append(connection, entries, "open", ledger._opening)
        ledger._check_opening()
        return ledger

    def reserve(self, event: Mechanism | str, plan_hash: str) -> Reservation:
        """Write one mechanism down as spent, synced, and return it. Nothing is written when it raises.

        Raises `PolicyError`: E-CAP (epsilon over the cap), E-FILTER (a later plan over it by Rényi DP at the fixed order),
        E-SAMPLER (too many draws for the sampler's tail), E-DECLARE (no patient-level epsilon to compose).
        """
        mechanism = mechanism_from(event if isinstance(event, str) else event.event())
        with self._transaction() as (connection, entries):
            self._admit(mechanism, entries, plan_hash)
            body = {
                "event": json.loads(mechanism.event()),
                "plan": plan_hash,
                "cap": self._cap,
                "accountant": f"dp-accounting {version('dp-accounting')}",
            }
            entry = _append(connection, entries, "reserve", body)
        return Reservation(entry.seq, mechanism.steps, mechanism)

    def commit(self, reservation: Reservation, artefact_sha256: str) -> None:
        """Record the one artefact that a reservation led to; the same artefact again is no change.

        Raises `PolicyError` (E-COMMIT) for an unknown reservation, another event, or a second artefact.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", artefact_sha256):
            raise ConfigurationError("ledger: commit: expected a SHA-256 in lower-case hex")
        with self._transaction() as (connection, entries):
            reserved = [e for e in entries if e.kind == "reserve" and e.seq == reservation.id]
            if not reserved or reserved[0].data["event"] != json.loads(reservation.event.event()):
                raise PolicyError(
                    f"ledger: commit: no such reservation {reservation.id}", code="E-COMMIT"
                )
            earlier = [
                e.data["artefact"]
                for e in entries
                if e.kind == "commit" and e.data["reservation"] == reservation.id
            ]
            if earlier and earlier != [artefact_sha256]:
                raise PolicyError(
                    f"ledger: commit: reservation {reservation.id} has another artefact",
                    code="E-COMMIT",
                )
            if not earlier:
                _append(
                    connection,
                    entries,
                    "commit",
                    {"reservation": reservation.id, "artefact": artefact_sha256},
                )

    def declare(self, event: Mechanism | str, plan_hash: str = "") -> None:
        """Record a mechanism that claims no patient-level epsilon: it is listed, not composed."""
        mechanism = mechanism_from(event if isinstance(event, str) else event.event())
        if mechanism.covers_patient:
            raise PolicyError(
                "ledger: declare: this mechanism claims epsilon per patient: reserve it",
                code="E-RESERVE",
            )
        with self._transaction() as (connection, entries):
            _append(
                connection,
                entries,
                "declare",
                {"event": json.loads(mechanism.event()), "plan": plan_hash},
            )

    def verify(self) -> None:
        """Recompute the whole chain; raises `RefusedError` (E-LEDGER) naming the first bad entry."""
        self.rows()
        self._check_opening()

    def rows(self) -> tuple[Entry, ...]:
        """All verified entries, oldest first."""
        with self._transaction() as (_, entries):
            return tuple(entries)

    @property
    def head(self) -> str:
        """`seq:hash` of the last entry: what a message carries and the server countersigns."""
        return _head(self.rows())

    def refuse_if_behind(self, countersigned_head: str) -> None:
        """Raise `PolicyError` (E-ROLLBACK) unless the ledger contains this head: an old backup, or another ledger."""
        if countersigned_head not in (f"{entry.seq}:{entry.hash}" for entry in self.rows()):
            raise PolicyError(
                f"ledger {self._path.name}: the server countersigned entry {countersigned_head.split(':')[0]}, which is not here",
                hint="put the newest copy of the ledger back; training stays closed until then",
                code="E-ROLLBACK",
            )

    def report(self, *, prv: bool = True) -> LedgerReport:
        """What was spent, recomputed from the rows alone. `prv` adds opacus' accountant (and so imports torch)."""
        entries = self.rows()
        mechanisms = _mechanisms(entries, "reserve")
        return LedgerReport(
            cohort=self._opening["cohort"],
            head=_head(entries),
            cap_epsilon=self._cap,
            spent=spend(mechanisms, self._opening["delta"], prv=prv),
            mechanisms=merged(mechanisms),
            declared=_mechanisms(entries, "declare"),
            reserved=len(mechanisms),
            committed=sum(entry.kind == "commit" for entry in entries),
        )

    def _admit(self, mechanism: Mechanism, entries: list[Entry], plan_hash: str) -> None:
        """Refuse what does not fit; decides only, changes nothing."""
        delta, cap = self._opening["delta"], self._cap
        if not mechanism.covers_patient:
            raise PolicyError(
                "ledger: groups by similarity have no epsilon per patient: declare it",
                code="E-DECLARE",
            )
        history = (*_mechanisms(entries, "reserve"), mechanism)
        spent = spend(history, delta)
        if not spent.pld <= cap:
            raise PolicyError(
                f"ledger: this would bring epsilon per patient to {spent.pld:.3f}, the site's cap is {cap:g} (delta {delta:g})",
                hint="the cap is the site's own policy (site.yaml); nothing was spent",
                code="E-CAP",
            )
        if not spent.sampler_delta <= SAMPLER_SHARE * delta:
            raise PolicyError(
                f"ledger: the sampler's tail would add {spent.sampler_delta:.1g} to delta {delta:g}",
                code="E-SAMPLER",
            )
        plans = {entry.data["plan"] for entry in entries if entry.kind == "reserve"} | {plan_hash}
        if len(plans) > 1 and not epsilon_rdp(history, delta, order=self._opening["order"]) <= cap:
            raise PolicyError(
                f"ledger: a later plan must also fit by Rényi DP at order {self._opening['order']:g}, and does not (cap {cap:g})",
                hint="the later plan may depend on what the earlier one released; nothing was spent",
                code="E-FILTER",
            )

    def _check_opening(self) -> None:
        first = self.rows()[0]
        if first.kind != "open" or first.data != self._opening:
            raise PolicyError(
                f"ledger {self._path.name}: it was opened for another pseudonym key, delta, order or format",
                hint="delta and cohort are fixed for the life of a ledger: use the site's own state folder and its first delta",
                code="E-COHORT",
            )

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, list[Entry]]]:
        """The verified entries under a write lock; commits (synced) on success, changes nothing on an error."""
        with _faults_named(self._path):
            if not self._path.exists():
                os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(
                sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None)
            ) as connection:
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


def _read(connection: sqlite3.Connection) -> list[Entry]:
    """All entries, the chain verified; an empty file becomes an empty ledger."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in SCHEMA.strip().split("\n"):
            connection.execute(statement)
        return []
    entries: list[Entry] = []
    previous = GENESIS
    for number, row in enumerate(
        connection.execute("SELECT seq, kind, body, prev_hash, hash FROM entries ORDER BY seq"), 1
    ):
        entries.append(_verified(number, row, previous))
        previous = entries[-1].hash
    if connection.execute("PRAGMA user_version").fetchone()[0] != len(entries) or not entries:
        raise _damaged(len(entries) + 1)
    return entries


def _verified(number: int, row: tuple[Any, ...], previous: str) -> Entry:
    """The entry of one row, or a refusal that names it."""
    seq, kind, body, prev_hash, digest = row
    if seq != number or not all(isinstance(part, bytes) for part in row[1:]):
        raise _damaged(number)
    if prev_hash != previous.encode() or digest != _digest(previous, number, kind, body).encode():
        raise _damaged(number)
    return Entry(number, kind.decode(), json.loads(body), digest.decode())


def _append(
    connection: sqlite3.Connection, entries: list[Entry], kind: str, data: dict[str, Any]
) -> Entry:
    previous = entries[-1].hash if entries else GENESIS
    number, body = len(entries) + 1, canonical(data)
    digest = _digest(previous, number, kind.encode(), body)
    connection.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
        (number, kind, body.decode(), previous, digest),
    )
    connection.execute(f"PRAGMA user_version={number}")
    return Entry(number, kind, data, digest)


def _digest(previous: str, number: int, kind: bytes, body: bytes) -> str:
    return hashlib.sha256(
        b"\n".join([previous.encode(), str(number).encode(), kind, body])
    ).hexdigest()


def _mechanisms(entries: list[Entry] | tuple[Entry, ...], kind: str) -> tuple[Mechanism, ...]:
    return tuple(
        mechanism_from(json.dumps(entry.data["event"])) for entry in entries if entry.kind == kind
    )


def _head(entries: tuple[Entry, ...]) -> str:
    return f"{entries[-1].seq}:{entries[-1].hash}"


def _damaged(number: int) -> RefusedError:
    return RefusedError(
        f"ledger: entry {number} is not what was written",
        hint="restore the newest intact copy of the ledger; training stays closed until it verifies",
        code="E-LEDGER",
    )


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as ours: locked, full disk, other I/O, or a damaged file."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"ledger {path}: {error.strerror}", hint="check the path and its owner"
        ) from error
    except sqlite3.DatabaseError as error:
        name = str(getattr(error, "sqlite_errorname", ""))
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            hint, code = "another kohort-site uses it: wait for it, or stop it", "E-LEDGER-LOCKED"
        elif name.startswith("SQLITE_FULL"):
            hint, code = "free some space there and start again; nothing was spent", "E-DISK-FULL"
        elif name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            hint, code = (
                "check the disk, the path and its owner; nothing was spent",
                "E-ENVIRONMENT",
            )
        else:
            raise RefusedError(
                f"ledger {path}: damaged ({error})",
                hint="restore the newest intact copy",
                code="E-LEDGER",
            ) from error
        raise EnvironmentFault(f"ledger {path}: {error}", hint=hint, code=code) from error
