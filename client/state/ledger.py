"""The site's privacy ledger: everything that was ever spent, and what may still be spent.

In: a mechanism before its noise is drawn; the SHA-256 of what came of it.
Out: a `Reservation`, or a refusal; a report.
Guarantees:
- A reservation is on disk before it is handed out, and nothing gives it back: a crash counts as
  spent.
- The epsilon of all reservations stays within the site's own cap, by PLD. From the second plan on
  also by Rényi DP at an order fixed at `open` (a filter, Feldman and Zrnic 2021).
- Entries hold public constants alone: no count, index or seed.
Not covered: whether the reserved mechanism is the one that runs (client/learn/private_step.py
compares them). Every patient of the site is assumed to take part in every event.

Entries: open {format, cohort, delta, order}, reserve {event, plan, cap, accountant, weights},
commit {reservation, artefact}, declare {event, plan, weights}, lost {epsilon}.
After a loss, the epsilon of the lost state is added to that of all later mechanisms, and its delta
to theirs (basic composition): nothing is known of what it was spent on.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.state.ledger_file import Entry, append, of_kind, transaction
from common.errors import ConfigurationError, PolicyError, RefusedError, damage_named
from common.privacy.accounting import SAMPLER_SHARE, Spent, epsilon_rdp, merge, spend
from common.privacy.mechanisms import Mechanism, mechanism_from
from common.privacy.price import OF_PATIENT, SitePrice, at_most, exactly
from common.wire.messages import canonical

FORMAT = "kohort-ledger/1"


@dataclass
class Reservation:
    """Steps that the ledger holds as spent; `take()` hands out one at a time.

    `id` is the ledger entry.
    """

    id: int
    steps: int
    event: Mechanism
    taken: int = field(default=0, init=False)

    def take(self) -> None:
        """Use one step; raises PolicyError (E-EXHAUSTED) when none is left."""
        if self.taken >= self.steps:
            raise PolicyError(
                f"ledger: reservation {self.id}: all {self.steps} steps are used",
                code="E-EXHAUSTED",
            )
        self.taken += 1

    def to_json(self) -> str:
        """Return the reservation for a child process, with the steps that are left."""
        data = {
            "id": self.id,
            "steps": self.steps - self.taken,
            "event": json.loads(self.event.event()),
        }
        return canonical(data).decode()

    @classmethod
    def from_json(cls, text: str) -> Reservation:
        """Return the reservation in `to_json`'s text; raises RefusedError for anything else."""
        damage = RefusedError("reservation: expected id, steps and event as the ledger wrote them")
        with damage_named(damage):
            data = json.loads(text)
            number = data["id"]
            steps = data["steps"]
            event = mechanism_from(json.dumps(data["event"]))
            whole = type(number) is int and type(steps) is int
            if len(data) != 3 or not whole or not 0 <= steps <= event.steps:
                raise ValueError("fields")
        return cls(number, steps, event)


class PracticeReservation:
    """Steps without a ledger, for rehearsals and for tests with repeatable noise.

    The private step refuses it with production noise, the gate refuses it with any.
    """

    def __init__(self, event: Mechanism) -> None:
        self.event = event
        self.steps = event.steps
        self.taken = 0

    def take(self) -> None:
        """Use one step; raises PolicyError (E-EXHAUSTED) when none is left."""
        if self.taken >= self.steps:
            raise PolicyError(
                f"practice reservation: all {self.steps} steps are used", code="E-EXHAUSTED"
            )
        self.taken += 1

    @classmethod
    def from_event(cls, text: str) -> PracticeReservation:
        """Return practice steps of a mechanism's text; raises RefusedError for any other text."""
        return cls(mechanism_from(text))


@dataclass(frozen=True)
class LedgerReport:
    """What was spent: merged mechanisms, epsilon by each accountant, the cap.

    `declared`: what is recorded and not composed. `lost`: epsilon of an earlier, lost state.
    `by_plan`: what each plan spent, by its hash, in the order of the first reservation.
    """

    cohort: str
    head: str
    cap_epsilon: float
    spent: Spent
    mechanisms: tuple[Mechanism, ...]
    declared: tuple[Mechanism, ...]
    reserved: int
    committed: int
    lost: float = 0.0
    by_plan: Mapping[str, tuple[Mechanism, ...]] = field(default_factory=dict)

    @property
    def price(self) -> SitePrice:
        """What all plans cost one patient, by PLD, and what was lost."""
        spent = self.spent.pld + self.lost
        return SitePrice(spent, self.cap_epsilon, self.spent.delta, self.lost)

    @property
    def remaining(self) -> float:
        """Cap minus epsilon by PLD, and minus what was lost."""
        return self.price.left

    def to_text(self) -> str:
        """Return the report as printed."""
        counts = f"{self.reserved} reserved, {self.committed} committed"
        lines = [f"ledger: {counts}, head {self.head[:20]}"]
        lines += [f"  {mechanism.statement()}" for mechanism in self.mechanisms]
        for mechanism in self.declared:
            lines.append(f"  recorded, not composed: {mechanism.statement()}")
        lines += [f"  {OF_PATIENT}", *self.price.lines()]
        lines.append(f"    by accountant: {self.spent.words()}")
        if self.lost:
            lines.append(
                f"    before a loss: epsilon {at_most(self.lost)}, delta {self.spent.delta:g} at "
                "most; both add to what the accountants say"
            )
        return "\n".join(lines)


class Ledger:
    """The ledger of one site. Every call opens, verifies and closes the file.

    Two processes may use it.
    """

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
        lost: float = 0.0,
    ) -> Ledger:
        """Return the verified ledger at `path`, created if missing.

        A new one begins with `lost` as spent: the epsilon of an earlier state that is lost.

        `cap_epsilon` is the site's own policy and may change. `delta`, `filter_order` and `cohort`
        (fingerprint of the pseudonym key) are fixed by the first opening. Raises PolicyError
        (E-COHORT) if they differ, RefusedError (E-LEDGER) if the file is damaged, EnvironmentFault
        for a lock or a full disk.
        """
        if not (0.0 < cap_epsilon < 1e6 and 0.0 < delta < 1.0 and filter_order > 1.01):
            raise ConfigurationError(
                "ledger: expected cap > 0, 0 < delta < 1, order > 1, "
                f"got {cap_epsilon}, {delta}, {filter_order}"
            )
        ledger = cls(path, cap_epsilon, delta, cohort, filter_order)
        with ledger._transaction() as (connection, entries):
            if not entries:
                opening = append(connection, entries, "open", ledger._opening)
                if lost > 0:
                    append(connection, [opening], "lost", {"epsilon": lost})
        ledger._check_opening()
        return ledger

    def reserve(self, event: Mechanism | str, plan_hash: str, *, weights: str = "") -> Reservation:
        """Write one mechanism down as spent, synced, and return it. A refusal writes nothing.

        `weights`: SHA-256 of the global weights that it runs with.
        Raises PolicyError: E-CAP (epsilon over the cap), E-FILTER (a later plan over it by Rényi
        DP at the fixed order), E-SAMPLER (too many draws for the sampler's tail), E-DECLARE (no
        patient-level epsilon to compose).
        """
        mechanism = _parse(event)
        with self._transaction() as (connection, entries):
            # decide first, then write
            self._admit(mechanism, entries, plan_hash)
            body = {
                "event": json.loads(mechanism.event()),
                "plan": plan_hash,
                "cap": self._cap,
                "accountant": f"dp-accounting {version('dp-accounting')}",
                "weights": weights,
            }
            entry = append(connection, entries, "reserve", body)
        return Reservation(entry.seq, mechanism.steps, mechanism)

    def commit(self, reservation: Reservation, artefact_sha256: str) -> None:
        """Record the one artefact that a reservation led to; the same one again is no change.

        Raises PolicyError (E-COMMIT) for an unknown reservation, another event, or a second
        artefact.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", artefact_sha256):
            raise ConfigurationError("ledger: commit: expected a SHA-256 in lower-case hex")
        if type(reservation) is not Reservation:
            raise PolicyError(
                "ledger: commit: practice steps, which were never reserved", code="E-COMMIT"
            )
        number = reservation.id
        with self._transaction() as (connection, entries):
            # the reservation is in the ledger, for this event
            event = json.loads(reservation.event.event())
            reserved = {entry.seq: entry.data["event"] for entry in of_kind(entries, "reserve")}
            if number not in reserved or reserved[number] != event:
                raise PolicyError(f"ledger: commit: no such reservation {number}", code="E-COMMIT")
            # it has no artefact yet, or exactly this one
            earlier: list[str] = []
            for commit in of_kind(entries, "commit"):
                if commit.data["reservation"] == number:
                    earlier.append(commit.data["artefact"])
            if earlier and earlier != [artefact_sha256]:
                raise PolicyError(
                    f"ledger: commit: reservation {number} has another artefact", code="E-COMMIT"
                )
            if not earlier:
                body = {"reservation": number, "artefact": artefact_sha256}
                append(connection, entries, "commit", body)

    def declare(self, event: Mechanism | str, plan_hash: str = "", *, weights: str = "") -> None:
        """Record a mechanism that claims no patient-level epsilon: it is listed, not composed.

        `weights` as in `reserve`.
        """
        mechanism = _parse(event)
        if mechanism.covers_patient:
            raise PolicyError(
                "ledger: declare: this mechanism claims epsilon per patient: reserve it",
                code="E-RESERVE",
            )
        with self._transaction() as (connection, entries):
            body = {
                "event": json.loads(mechanism.event()),
                "plan": plan_hash,
                "weights": weights,
            }
            append(connection, entries, "declare", body)

    def lost(self) -> float:
        """Return the epsilon of an earlier, lost state; 0 where there was none."""
        return _lost(self.rows())

    def verify(self) -> None:
        """Recompute the whole chain; raises RefusedError (E-LEDGER) naming the first bad entry."""
        self.rows()
        self._check_opening()

    def rows(self) -> tuple[Entry, ...]:
        """Return all verified entries, oldest first."""
        with self._transaction() as (_, entries):
            return tuple(entries)

    @property
    def head(self) -> str:
        """`seq:hash` of the last entry; it stays on site (what leaves: client/state/head.py)."""
        return self.rows()[-1].head

    def report(self, *, prv: bool = True) -> LedgerReport:
        """Return what was spent, recomputed from the entries alone.

        `prv` adds opacus' accountant.
        """
        entries = self.rows()
        mechanisms = _mechanisms(entries, "reserve")
        return LedgerReport(
            cohort=self._opening["cohort"],
            head=entries[-1].head,
            cap_epsilon=self._cap,
            spent=spend(mechanisms, self._opening["delta"], prv=prv),
            mechanisms=merge(mechanisms),
            declared=_mechanisms(entries, "declare"),
            reserved=len(mechanisms),
            committed=len(of_kind(entries, "commit")),
            lost=_lost(entries),
            by_plan=_by_plan(entries),
        )

    def _admit(self, mechanism: Mechanism, entries: list[Entry], plan_hash: str) -> None:
        """Refuse what does not fit; decides only, changes nothing."""
        delta = self._opening["delta"]
        cap = self._cap
        if not mechanism.covers_patient:
            raise PolicyError(
                "ledger: groups by similarity have no epsilon per patient: declare it",
                code="E-DECLARE",
            )
        # the cap, by PLD; written so that a NaN is refused
        history = (*_mechanisms(entries, "reserve"), mechanism)
        spent = spend(history, delta)
        lost = _lost(entries)
        if not spent.pld + lost <= cap:
            raise PolicyError(
                f"ledger: this would bring epsilon per patient to {at_most(spent.pld + lost)}, "
                f"the site's cap is {exactly(cap)} (delta {delta:g})",
                hint="the cap is the site's own policy (site.yaml); nothing was spent",
                code="E-CAP",
            )
        # the tail of the noise sampler
        if not spent.sampler_delta <= SAMPLER_SHARE * delta:
            raise PolicyError(
                f"ledger: the sampler's tail would add {spent.sampler_delta:.1g} "
                f"to delta {delta:g}",
                code="E-SAMPLER",
            )
        # from the second plan on, the cap by Rényi DP at the fixed order
        plans = {entry.data["plan"] for entry in of_kind(entries, "reserve")} | {plan_hash}
        order = self._opening["order"]
        later = len(plans) > 1 or lost > 0
        if later and not epsilon_rdp(history, delta, order=order) + lost <= cap:
            raise PolicyError(
                f"ledger: a later plan must also fit by Rényi DP at order {order:g}, "
                f"and does not (cap {cap:g})",
                hint="the later plan may depend on what the earlier one released; "
                "nothing was spent",
                code="E-FILTER",
            )

    def _check_opening(self) -> None:
        """Refuse a file that was opened with other constants."""
        first = self.rows()[0]
        if first.kind != "open" or first.data != self._opening:
            raise PolicyError(
                f"ledger {self._path.name}: it was opened for another pseudonym key, delta, order "
                "or format",
                hint="delta and cohort are fixed for the life of a ledger: use the site's own "
                "state folder and its first delta",
                code="E-COHORT",
            )

    def _transaction(self) -> AbstractContextManager[tuple[sqlite3.Connection, list[Entry]]]:
        """The verified entries under a write lock; nothing is changed on an error."""
        return transaction(self._path)


def _parse(event: Mechanism | str) -> Mechanism:
    """The known mechanism of an event or of its text; raises RefusedError for any other."""
    if isinstance(event, str):
        return mechanism_from(event)
    return mechanism_from(event.event())


def _mechanisms(entries: Sequence[Entry], kind: str) -> tuple[Mechanism, ...]:
    """The mechanisms of all entries of one kind."""
    found = of_kind(entries, kind)
    return tuple(mechanism_from(json.dumps(entry.data["event"])) for entry in found)


def _by_plan(entries: Sequence[Entry]) -> dict[str, tuple[Mechanism, ...]]:
    """The merged mechanisms of each plan."""
    spent: dict[str, list[Mechanism]] = {}
    for entry in of_kind(entries, "reserve"):
        mechanism = mechanism_from(json.dumps(entry.data["event"]))
        spent.setdefault(str(entry.data["plan"]), []).append(mechanism)
    return {plan: merge(mechanisms) for plan, mechanisms in spent.items()}


def _lost(entries: Sequence[Entry]) -> float:
    """The epsilon that was marked as spent before this ledger began."""
    return sum(float(entry.data["epsilon"]) for entry in of_kind(entries, "lost"))
