"""The server's metrics (common/monitoring/names.py), and whether it is well.

In: the operator's state folder, when the server started. Out: a `Scrape`; yes or no.
Guarantees: names, rounds, times and codes alone, as `kohort-server status` shows them; what cannot
be read is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from common.monitoring import names
from common.storage.heartbeat import life_of
from server.operator.config import ServerConfig
from server.operator.expiry import lifetimes
from server.operator.opening import open_registry
from server.operator.quota import GIB, folder_bytes, releases_folder
from server.operator.refusals import read_refusals
from server.operator.state import ServerState
from server.rounds.standing import Standing, StudyStanding, read_standing

if TYPE_CHECKING:
    from common.monitoring.scrape import Scrape

SERVICE = "kohort.server"
HASH_LETTERS = 12
SIZES_S = 300.0  # how often the folders with a quota are measured
RELEASED = {"release-proposed": "proposed", "release-published": "published"}


@dataclass
class ServerMetrics:
    """What can be told of a running server."""

    state: ServerState
    config: ServerConfig
    started: float = field(default_factory=time.time)
    _measured: float = -SIZES_S
    _sizes: dict[str, int] = field(default_factory=dict)

    def collect(self) -> Scrape:
        """Return everything that holds now."""
        # imported where it is configured alone
        from common.monitoring.scrape import Scrape

        scrape = Scrape()
        scrape.set(names.SERVER_VERSION, 1, version("kohort-app"))
        scrape.set(names.SERVER_START, self.started)
        standing = read_standing(self.state)
        self._tell_studies(scrape, standing)
        self._tell_sites(scrape, standing)
        self._tell_certificates(scrape)
        self._tell_quotas(scrape)
        self._tell_releases(scrape, standing)
        for status, count in read_refusals(self.state.root).items():
            scrape.set(names.SERVER_REFUSED, count, str(status))
        return scrape

    def is_well(self) -> bool:
        """Return whether the server gives signs of life."""
        return life_of(self.state.root).alive

    def _tell_studies(self, scrape: Scrape, standing: Standing) -> None:
        """Every study: rounds, state, who is missing."""
        beat = standing.server.last_beat
        scrape.set(names.SERVER_HEARTBEAT, beat.timestamp() if beat else None)
        scrape.set(names.SERVER_FOREIGN, len(standing.foreign_runs))
        for study in standing.studies:
            labels = _labels(study)
            progress = study.progress
            scrape.set(names.SERVER_STUDY_STATE, 1, *labels, _state_of(study))
            paused = study.is_open and bool(progress.code)
            scrape.set(names.SERVER_PAUSED, paused, *labels, progress.code if paused else "")
            scrape.set(names.SERVER_ROUNDS, progress.total, *labels)
            scrape.set(names.SERVER_CLOSED, progress.done, *labels)
            for one in study.missing:
                scrape.set(names.SERVER_MISSING, 1, *labels, one.site)

    def _tell_sites(self, scrape: Scrape, standing: Standing) -> None:
        """Every site: its state, its code, and when it was heard, if one can be heard now."""
        for site in standing.sites:
            scrape.set(names.SERVER_SITE_STATE, 1, site.name, site.state)
            if not standing.between:
                seen = site.seen.timestamp() if site.seen else None
                scrape.set(names.SERVER_SITE_SEEN, seen, site.name)
            if site.declared is not None:
                scrape.set(names.SERVER_SITE_CODE, 1, site.name, site.declared.advice.code)

    def _tell_certificates(self, scrape: Scrape) -> None:
        """When every certificate ends."""
        with open_registry(self.state) as registry:
            known = registry.sites()
        for one in lifetimes(self.state, known):
            of = f"site:{one.whose}" if one.whose in known else one.whose.removeprefix("the ")
            scrape.set(names.SERVER_CERTIFICATE, one.ends.timestamp(), of)

    def _tell_quotas(self, scrape: Scrape) -> None:
        """The folders with a quota; walking through them takes time, so their sizes are kept."""
        limits = self.config.limits
        if time.monotonic() - self._measured >= SIZES_S:
            self._measured = time.monotonic()
            self._sizes = {
                "inbox": folder_bytes(self.state.superlink),
                "studies": folder_bytes(self.state.root / "studies"),
            }
            releases = releases_folder(self.state.root)
            if releases is not None:
                self._sizes["releases"] = folder_bytes(releases)
        quotas = {
            "inbox": limits.inbox_gib,
            "studies": limits.studies_gib,
            "releases": limits.releases_gib,
        }
        for folder, most_gib in quotas.items():
            scrape.set(names.SERVER_USED, self._sizes.get(folder), folder)
            scrape.set(names.SERVER_QUOTA, most_gib * GIB, folder)

    def _tell_releases(self, scrape: Scrape, standing: Standing) -> None:
        """What the log says of each study's releases."""
        labels = {study.hash: _labels(study) for study in standing.studies}
        newest: dict[str, str] = {}
        signed: dict[str, set[str]] = {}
        with self.state.open_log() as log:
            for entry in log.entries():
                plan = str(entry.facts.get("plan", ""))
                if plan not in labels:
                    continue
                if entry.event in RELEASED:
                    newest[plan] = RELEASED[entry.event]
                if entry.event == "release-signed-off":
                    signed.setdefault(plan, set()).add(str(entry.facts["by"]))
        for plan, state in newest.items():
            scrape.set(names.SERVER_RELEASE, 1, *labels[plan], state)
            scrape.set(names.SERVER_SIGN_OFFS, len(signed.get(plan, ())), *labels[plan])


@contextmanager
def shown(metrics: ServerMetrics) -> Iterator[None]:
    """Answer scrapers and probes as server.yaml says, until the block ends."""
    config = metrics.config
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


def _labels(study: StudyStanding) -> tuple[str, str]:
    """The labels `study` and `plan`."""
    return study.name, study.hash[:HASH_LETTERS]


def _state_of(study: StudyStanding) -> str:
    """What a study is, in one word."""
    if study.progress.complete:
        return "complete"
    if study.progress.abandoned:
        return "abandoned"
    return "paused" if study.progress.code else "running"
