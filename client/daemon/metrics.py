"""The site's metrics (common/monitoring/names.py), and whether it is well.

In: the daemon's state folder, its health states, when it started. Out: a `Scrape`; yes or no.
Guarantees: no value or label depends on how many patients, images or groups there are; a part that
cannot be read is left out, and its code is shown.
Not covered: when a value changes, which follows the length of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from client.daemon.site import Site
from client.fleet import health as states
from client.fleet.connection import FleetSettings
from client.fleet.expiry import lifetimes
from client.fleet.health import Health
from client.state.price import price_of_plan, site_report, spent_of_plan
from client.state.upgrade import check_state
from client.state.work import at_work
from common.errors import KohortError
from common.monitoring import names
from common.storage import reserve
from common.study.plan import Study

if TYPE_CHECKING:
    from common.monitoring.scrape import Scrape

FRESH_S = 60.0  # without a sign of life for so long the daemon hangs
STATE_S = 600.0  # how often the whole state folder is compared with what left of it
HASH_LETTERS = 12
SERVICE = "kohort.site"


@dataclass
class SiteMetrics:
    """What can be told of a running daemon. `alive`: the file that it touches every few seconds."""

    site: Site
    health: Health
    settings: FleetSettings
    alive: Path
    started: float = field(default_factory=time.time)
    _compared: float = -STATE_S
    _fault: str = ""
    _planned: dict[str, float] = field(default_factory=dict)

    def collect(self) -> Scrape:
        """Return everything that holds now."""
        # imported where it is configured alone
        from common.monitoring.scrape import Scrape

        scrape = Scrape()
        faults: set[str] = set()
        parts = (
            self._process,
            self._connection,
            self._plans,
            self._prices,
            self._spent,
            self._state,
        )
        for part in parts:
            try:
                part(scrape)
            except KohortError as error:
                faults.add(error.code)
        for code in faults:
            scrape.set(names.SITE_STATE_FAULT, 1, code)
        return scrape

    def is_alive(self) -> bool:
        """Return whether the daemon gave a sign of life a moment ago."""
        return abs(time.time() - self.alive.stat().st_mtime) < FRESH_S

    def is_well(self) -> bool:
        """Return whether it is alive, connected, and has room for its records."""
        connection = self.health.get(states.CONNECTION)
        connected = connection is not None and connection.state == states.CONNECTED
        return connected and self.health.get(states.DISK) is None and self.is_alive()

    def _process(self, scrape: Scrape) -> None:
        """Version, start and sign of life."""
        scrape.set(names.SITE_VERSION, 1, version("kohort-app"))
        scrape.set(names.SITE_START, self.started)
        scrape.set(names.SITE_HEARTBEAT, _changed(self.alive))
        held = (self.site.state.root / reserve.NAME).exists()
        scrape.set(names.SITE_RESERVE, held)

    def _connection(self, scrape: Scrape) -> None:
        """The last contact, the certificates, and the health states without their facts."""
        scrape.set(names.SITE_CONTACT, self.health.last_heartbeat)
        for lifetime in lifetimes(self.settings):
            of = lifetime.whose.rpartition(" ")[2]  # `this site`, `the authority`
            scrape.set(names.SITE_CERTIFICATE, lifetime.ends.timestamp(), of)
        for one in self.health.active():
            state = one.state
            if state.subject == states.CONNECTION:
                scrape.set(names.SITE_CONNECTION, 1, state.code, state.severity)
            elif state.severity != "info":
                scrape.set(names.SITE_PROBLEM, 1, state.code, state.severity)

    def _plans(self, scrape: Scrape) -> None:
        """Rounds of every approved plan, its epsilon, whether a person is waited for."""
        state = self.site.state
        answered = [entry.key for entry in state.journal.entries() if entry.state == "answered"]
        waiting = {one.study for one in self.site.reviews.batches() if one.state == "waiting"}
        for plan_hash, study in self.site.plans.valid().items():
            labels = (study.name, plan_hash[:HASH_LETTERS])
            for model, trained in study.models.trained().items():
                place = f"{plan_hash}/train/{model}/"
                done = sum(key.startswith(place) for key in answered)
                scrape.set(names.SITE_ROUNDS, trained.rounds, *labels, model)
                scrape.set(names.SITE_ANSWERED, done, *labels, model)
            for phase in _phases(study):
                scrape.set(names.SITE_AT_WORK, 0, *labels, phase)
            for one in at_work(state, plan_hash, study):
                scrape.set(names.SITE_AT_WORK, 1, *labels, one.round.split(" round ")[0])
            scrape.set(names.SITE_REVIEW, plan_hash in waiting, *labels)
            scrape.set(names.SITE_EPSILON_PROMISED, study.privacy.epsilon, *labels)

    def _prices(self, scrape: Scrape) -> None:
        """What every approved plan spends of one patient, and has spent so far."""
        records = self.site.records
        report = site_report(records)
        for plan_hash, study in self.site.plans.valid().items():
            labels = (study.name, plan_hash[:HASH_LETTERS])
            if plan_hash not in self._planned:
                # constants of the plan: computed once
                self._planned[plan_hash] = price_of_plan(records, study).planned
            scrape.set(names.SITE_EPSILON_PLANNED, self._planned[plan_hash], *labels)
            scrape.set(names.SITE_EPSILON_SPENT, spent_of_plan(records, report, study), *labels)

    def _spent(self, scrape: Scrape) -> None:
        """What all plans have spent, and the cap."""
        scrape.set(names.SITE_EPSILON_CAP, self.site.config.policy.max_epsilon)
        scrape.set(names.SITE_EPSILON_ALL, site_report(self.site.records).price.spent)

    def _state(self, scrape: Scrape) -> None:
        """Whether the state folder is as new as what left of it; read anew now and then."""
        if time.monotonic() - self._compared >= STATE_S:
            self._compared = time.monotonic()
            self._fault = _fault_of(lambda: check_state(self.site.state))
        if self._fault:
            scrape.set(names.SITE_STATE_FAULT, 1, self._fault)


@contextmanager
def shown(metrics: SiteMetrics) -> Iterator[None]:
    """Answer scrapers and probes as site.yaml says, until the block ends."""
    config = metrics.site.config
    with ExitStack() as stack:
        # neither library is loaded where nothing asks for it
        if config.metrics.is_on:
            from common.monitoring.export import exporting

            stack.enter_context(exporting(config.metrics, metrics.collect))
        if config.health.listen is not None:
            from common.monitoring.health import ALL, answering

            services = {ALL: metrics.is_well, SERVICE: metrics.is_well}
            stack.enter_context(answering(config.health.listen, services))
        yield


def _phases(study: Study) -> Iterator[str]:
    """The phases of a plan, as both sides name them without the round's number."""
    for model in study.models.trained():
        yield f"train {model}"
    if study.synthesis is not None:
        yield "synthesize"


def _changed(path: Path) -> float | None:
    """When a file was written or touched last."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _fault_of(check: Callable[[], None]) -> str:
    """The code of what a check raises, or ""."""
    try:
        check()
    except KohortError as error:
        return error.code
    return ""
