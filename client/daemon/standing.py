"""What is true of this site now: its daemon, its plans, the connection, and what to mend.

In: the state folder, a time. Out: a `SiteStanding`, the same for `status`, `check` and the desk.
Guarantees: nothing is changed, and nobody is called. Without `counts` nothing in it follows from
the number of patients or images: what leaves the hospital's staff may hold such facts alone.
Not covered: how it is shown (client/cli/status.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from client.daemon.device import noted_devices
from client.egress.review import open_reviews
from client.fleet import health
from client.fleet.expiry import lifetimes
from client.fleet.health import CONTACT, LAST_ERROR, Active, read_seconds, read_states
from client.fleet.settings import fleet_settings
from client.ingest.cohort import Cohort
from client.state.config import SiteConfig, load_site
from client.state.folder import State
from client.state.membership import read_membership
from client.state.operators import plans_of
from client.state.plans import Approval
from client.state.upgrade import check_state
from client.state.work import AtWork, at_work
from common.alerts import Alert
from common.codes import Advice, advise
from common.errors import KohortError
from common.storage.heartbeat import Life, life_of, spell_json
from common.study.plan import Study
from common.wire.expiry import Lifetime, ending

FORMAT = "kohort-site-status/1"


@dataclass(frozen=True)
class CohortSummary:
    """How many people and images a cohort holds, without who withdrew. It never leaves the site."""

    people: int
    images: int
    by_label: Mapping[str, int]

    def words(self) -> str:
        """Return the numbers in one line."""
        labels = ", ".join(f"{name} {count}" for name, count in self.by_label.items())
        return f"{self.people} people, {self.images} images ({labels})"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {"people": self.people, "images": self.images, "by_label": dict(self.by_label)}


@dataclass(frozen=True)
class PlanStanding:
    """How far one approved plan is: by model rounds answered and planned, images, work."""

    name: str
    hash: str
    rounds: Mapping[str, tuple[int, int]]
    images: str
    work: tuple[AtWork, ...]
    cohort: CohortSummary | None
    approval: Approval | None = None

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """Return everything as JSON."""
        seconds = now.timestamp()
        return {
            "name": self.name,
            "hash": self.hash,
            "rounds": {model: list(pair) for model, pair in self.rounds.items()},
            "images": self.images,
            "approved": {"by": self.approval.by, "at": spell_json(self.approval.at)}
            if self.approval
            else None,
            "at_work": [one.to_dict(seconds) for one in self.work],
            "cohort": self.cohort.to_dict() if self.cohort else None,
        }


@dataclass(frozen=True)
class LastError:
    """What this site could not do last: the code in words, and when."""

    advice: Advice
    time: datetime

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {**self.advice.to_dict(), "time": spell_json(self.time)}


@dataclass(frozen=True)
class SiteStanding:
    """Everything that holds at `time`. `contact`: when the server answered last."""

    time: datetime
    site: str
    daemon: Life
    contact: datetime | None
    connection: tuple[Active, ...]
    devices: tuple[str, ...]
    plans: tuple[PlanStanding, ...]
    faults: tuple[Alert, ...]
    last_error: LastError | None
    expiry: tuple[Lifetime, ...]

    def alerts(self) -> tuple[Alert, ...]:
        """Return what a person should mend."""
        return (*self._life_alerts(), *self.faults, *self._plan_alerts(), *self._expiry_alerts())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON, in a shape that stays."""
        return {
            "format": FORMAT,
            "time": spell_json(self.time),
            "site": self.site,
            "daemon": self.daemon.to_dict(),
            "contact": spell_json(self.contact),
            "connection": [_active_facts(one) for one in self.connection],
            "devices": list(self.devices),
            "plans": [plan.to_dict(self.time) for plan in self.plans],
            "state": [fault.to_dict() for fault in self.faults],
            "last_error": self.last_error.to_dict() if self.last_error else None,
            "expiry": [
                {"of": one.whose, "ends": spell_json(one.ends), "fix": one.fix}
                for one in self.expiry
            ],
            "alerts": [alert.to_dict() for alert in self.alerts()],
        }

    def _life_alerts(self) -> Iterator[Alert]:
        """The daemon that is not there, or what it says of the connection and its work."""
        for one in self.connection:
            state = one.state
            if state.severity != "info":
                facts = f" ({one.facts})" if one.facts else ""
                yield Alert(state.severity, state.code, f"{state.text}{facts}", state.fix)

    def _plan_alerts(self) -> Iterator[Alert]:
        """Plans that wait for a person."""
        for plan in self.plans:
            if plan.images == "waiting":
                yield Alert(
                    "warning",
                    "REVIEW-WAITING",
                    f"plan {plan.name}: images wait for a person",
                    "kohort-site review",
                )

    def _expiry_alerts(self) -> Iterator[Alert]:
        """Certificates that end soon."""
        for one in ending(self.expiry, self.time):
            if one.severity != "info":
                text = one.line.removesuffix(f": {one.fix}")
                yield Alert(one.severity, "CERTIFICATE-ENDS", text, one.fix)


def _active_facts(one: Active) -> dict[str, Any]:
    """A health state as JSON."""
    state = one.state
    since = datetime.fromtimestamp(one.since, UTC) if one.since else None
    return {
        "code": state.code,
        "subject": state.subject,
        "severity": state.severity,
        "text": state.text,
        "fix": state.fix,
        "facts": one.facts,
        "since": spell_json(since),
    }


def site_standing(state: Path, now: datetime | None = None, *, counts: bool = True) -> SiteStanding:
    """Return what holds at `now`, by default this moment.

    With `counts`, cohorts are counted and work shows its steps: for this site's own staff. Raises
    ConfigurationError where there is no site, or site.yaml or the membership cannot be read.
    """
    now = now or datetime.now(UTC)
    config = load_site(state)
    place = State(state)
    daemon = life_of(state, now)
    return SiteStanding(
        time=now,
        site=config.site,
        daemon=daemon,
        contact=_moment(daemon.facts.get(CONTACT)),
        connection=tuple(_connection(daemon, now)),
        devices=tuple(noted_devices(place) or [f"{config.compute.device}: not looked for yet"]),
        plans=tuple(_plans(place, config, daemon, counts)),
        faults=tuple(_state_faults(place)),
        last_error=_last_error(daemon),
        expiry=tuple(_expiry(place, config)),
    )


def _connection(daemon: Life, now: datetime) -> Iterator[Active]:
    """Yield the states that hold; what a dead daemon wrote last is not true any more."""
    since = daemon.last_beat.timestamp() if daemon.last_beat else 0.0
    if daemon.state == "hung":
        yield Active(health.UNRESPONSIVE, since, daemon.words())
    elif daemon.alive:
        yield from read_states(daemon.facts)
    elif daemon.state != "never":
        yield Active(health.NOT_RUNNING, since, daemon.words())


def _plans(place: State, config: SiteConfig, daemon: Life, counts: bool) -> Iterator[PlanStanding]:
    """Yield how far each approved plan is, from the journal and the reviews."""
    plans = plans_of(place, read_membership(place.membership))
    answered = {entry.key for entry in place.journal.entries() if entry.state == "answered"}
    batches = {batch.study: batch.state for batch in open_reviews(place, config).batches()}
    for plan_hash, study in plans.valid().items():
        rounds = {}
        for model, trained in study.models.trained().items():
            rounds[model] = (_count(answered, f"{plan_hash}/train/{model}/"), trained.rounds)
        work: tuple[AtWork, ...] = ()
        if daemon.alive:
            work = tuple(at_work(place, plan_hash, study))
        yield PlanStanding(
            name=study.name,
            hash=plan_hash,
            rounds=rounds,
            images=_image_state(study, answered, batches),
            work=work,
            cohort=_cohort(place, study) if counts else None,
            approval=plans.approval(plan_hash),
        )


def _image_state(study: Study, answered: set[str], batches: Mapping[str, str]) -> str:
    """Return how far the images of a plan are, in words."""
    if _count(answered, f"{study.hash()}/synthesize/"):
        return "sent"
    if study.hash() in batches:
        return batches[study.hash()]
    return "not made yet" if study.synthesis else "none planned"


def _count(keys: set[str], prefix: str) -> int:
    """Return how many keys begin with a prefix."""
    return sum(key.startswith(prefix) for key in keys)


def _cohort(place: State, study: Study) -> CohortSummary | None:
    """Return what the cohort of a plan holds; None for none, or for one that cannot be read."""
    folder = place.cohort(study.intake)
    if not folder.is_dir():
        return None
    try:
        cohort = Cohort.open(folder)
    except KohortError:
        return None
    counts = np.bincount(cohort.labels, minlength=len(cohort.label_names))
    by_label = {name: int(count) for name, count in zip(cohort.label_names, counts, strict=False)}
    return CohortSummary(cohort.patient_count, len(cohort.labels), by_label)


def _state_faults(place: State) -> Iterator[Alert]:
    """Yield what is wrong with the state folder: older than what left, or damaged."""
    try:
        check_state(place)
    except KohortError as error:
        yield Alert("error", error.code, str(error), error.hint)


def _last_error(daemon: Life) -> LastError | None:
    """Return what the daemon could not do last, also of one that has ended."""
    row = daemon.facts.get(LAST_ERROR)
    if not isinstance(row, dict):
        return None
    when = _moment(row.get("time"))
    return None if when is None else LastError(advise(str(row.get("code"))), when)


def _expiry(place: State, config: SiteConfig) -> Iterator[Lifetime]:
    """Yield the certificates of this site, the first to end first; none before it has joined."""
    if place.membership.is_file():
        settings = fleet_settings(place, config, read_membership(place.membership))
        yield from sorted(lifetimes(settings), key=lambda one: one.ends)


def _moment(value: object) -> datetime | None:
    """Return a time of the heartbeat's facts; None for none."""
    seconds = read_seconds(value)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
