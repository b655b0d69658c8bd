"""What is true of the consortium now: the server, every study, every site, and what to mend.

In: the operator's state folder, a time. Out: a `Standing`, the same for `status`, the operator's
page and metrics.
Guarantees: nothing is changed, and nobody is called: works while a server runs, and while none
does; names, rounds, times and codes alone, as the server's own journal holds them.
Not covered: how it is shown (server/cli/status.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from common.alerts import Alert
from common.codes import Advice, advise
from common.storage.heartbeat import LAST_TIME, Life, life_of, spell_json, spell_time
from common.study.plan import Study
from common.wire.expiry import Ending
from server.operator.authorities import has_key
from server.operator.expiry import ending_certificates
from server.operator.foreign import foreign_runs
from server.operator.opening import open_registry
from server.operator.renewals import waiting_requests
from server.operator.sites import Site
from server.operator.state import ServerState
from server.rounds.record import Progress, StudyRecord
from server.rounds.studies import open_record, read_studies

FORMAT = "kohort-server-status/1"
CONNECTED = timedelta(seconds=60)  # a site gives a sign of life every ten seconds
SILENT = timedelta(minutes=10)  # after that somebody should ask
RECENT = timedelta(days=7)  # a refused run of others is old news then
QUARANTINE_FIX = (
    "It is in quarantine: `kohort-server sites release {name}` ends that, "
    "`kohort-server sites revoke {name}` ends its membership."
)
BETWEEN = "between"  # the fact of the server's heartbeat: no study is served
SEEN = "seen"  # the fact of the server's heartbeat: by site, seconds since 1970


@dataclass(frozen=True)
class Missing:
    """A site of which the last closed rounds have nothing. `since`: UTC, "" where unknown."""

    site: str
    rounds: int
    since: str


@dataclass(frozen=True)
class StudyStanding:
    """How far one study is; `progress` is the journal's, `missing` of its last closed rounds."""

    name: str
    hash: str
    progress: Progress
    missing: tuple[Missing, ...]
    sites: tuple[str, ...]
    quorum: int

    @property
    def is_open(self) -> bool:
        """Whether something is left to do."""
        return not (self.progress.complete or self.progress.abandoned)

    def words(self) -> str:
        """Return what the study does now, in a few words."""
        if self.progress.complete:
            return "complete"
        if self.progress.abandoned:
            return "abandoned"
        return f"{self.progress.phase} {self.progress.waiting}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        absent = [asdict(one) for one in self.missing]
        names = [one.site for one in self.missing]
        facts = asdict(self.progress) | {"missing": names, "absent": absent}
        return {"study": self.name, "hash": self.hash, "quorum": self.quorum, **facts}


@dataclass(frozen=True)
class Declared:
    """The code that a site gave last in place of an answer, or that put it into quarantine.

    `where`: the study and its round, "" for a quarantine. `since`: UTC, "" where unknown.
    """

    advice: Advice
    where: str = ""
    since: str = ""

    def words(self) -> str:
        """Return code, place, time, meaning and fix in one line."""
        place = f" in {self.where}" if self.where else ""
        since = f" since {self.since}" if self.since else ""
        return f"{self.advice.code}{place}{since}: {self.advice.means} {self.advice.fix}"

    def to_dict(self) -> dict[str, str]:
        """Return everything as JSON."""
        return {**self.advice.to_dict(), "where": self.where, "since": self.since}


@dataclass(frozen=True)
class SiteStanding:
    """How one site stands. `seen`: when the server heard it last, None for never.

    `connected`: it is heard now, by a server that runs. `awaited`: studies that need it.
    """

    name: str
    state: str
    seen: datetime | None
    connected: bool
    declared: Declared | None
    awaited: tuple[str, ...]
    fingerprint: str

    def words(self) -> str:
        """Return its state and when it was heard last."""
        if self.state == "revoked":
            return self.state
        if self.connected:
            return f"{self.state}, connected"
        if self.seen is None:
            return f"{self.state}, never seen"
        return f"{self.state}, silent since {spell_time(self.seen)}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON; `code` is the declared code, "" for none."""
        declared = self.declared.to_dict() if self.declared else None
        return {
            "site": self.name,
            "state": self.state,
            "code": self.declared.advice.code if self.declared else "",
            "connected": self.connected,
            "seen": spell_json(self.seen),
            "declared": declared,
            "awaited": list(self.awaited),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Standing:
    """Everything that holds at `time`. `unreadable`: codes of studies that cannot be read."""

    time: datetime
    server: Life
    studies: tuple[StudyStanding, ...]
    unreadable: Mapping[str, Advice]
    sites: tuple[SiteStanding, ...]
    foreign_runs: tuple[Mapping[str, Any], ...]
    ending: tuple[Ending, ...]
    renewals: tuple[str, ...] = ()  # sites whose next certificate a person has to sign

    @property
    def between(self) -> bool:
        """Whether the server is up and serves no study: it hears no site then."""
        return self.server.alive and self.server.facts.get(BETWEEN) is True

    def server_words(self) -> str:
        """Return whether the server runs, and for what."""
        words = self.server.words()
        return f"{words}, between studies" if self.between else words

    def alerts(self) -> tuple[Alert, ...]:
        """Return what a person should mend, in the order in which it stops a study."""
        found = [*self._server_alerts(), *self._study_alerts(), *self._site_alerts()]
        return (*found, *self._other_alerts())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON, in a shape that stays."""
        rows = [{"hash": key, "code": one.code} for key, one in self.unreadable.items()]
        return {
            "format": FORMAT,
            "time": spell_json(self.time),
            "server": self.server.to_dict(),
            "studies": [study.to_dict() for study in self.studies],
            "unreadable": rows,
            "sites": [site.to_dict() for site in self.sites],
            "foreign_runs": [dict(row) for row in self.foreign_runs],
            "ending": [
                {
                    "of": one.whose,
                    "ends": spell_json(one.ends),
                    "severity": one.severity,
                    "fix": one.fix,
                }
                for one in self.ending
            ],
            "renewals": list(self.renewals),
            "alerts": [alert.to_dict() for alert in self.alerts()],
        }

    def _server_alerts(self) -> Iterator[Alert]:
        """The server itself, where a study waits for it."""
        unfinished = [study.name for study in self.studies if study.is_open]
        if unfinished and (self.between or not self.server.alive):
            yield Alert(
                "error",
                "SERVER-HUNG" if self.server.state == "hung" else "SERVER-NOT-RUNNING",
                f"the server is {self.server_words()}; {', '.join(unfinished)} waits for it",
                "`kohort-server run BUNDLE` starts it; it goes on where it was",
            )

    def _study_alerts(self) -> Iterator[Alert]:
        """Studies that wait below their quorum, or cannot be read."""
        for study in self.studies:
            progress = study.progress
            if study.is_open and progress.code:
                yield Alert(
                    "error",
                    progress.code,
                    f"study {study.name} is paused since {progress.since}: {study.words()}",
                    f"ask these hospitals; more time: `kohort-server study extend {study.name}`, "
                    f"end it: `kohort-server study abandon {study.name}`",
                )
        for study_hash, advice in self.unreadable.items():
            text = f"study {study_hash[:12]} cannot be read: {advice.means}"
            yield Alert("error", advice.code, text, advice.fix)

    def _site_alerts(self) -> Iterator[Alert]:
        """Sites that are needed and silent, refuse, or are in quarantine."""
        for site in self.sites:
            if site.declared is not None and site.state != "revoked":
                text = f"{site.name}: {site.declared.advice.means}"
                fix = site.declared.advice.fix
                if site.state == "quarantined":
                    fix += f" {QUARANTINE_FIX.format(name=site.name)}"
                yield Alert("warning", site.declared.advice.code, text, fix)
            if self._is_lost(site):
                yield Alert(
                    "warning",
                    "SITE-SILENT",
                    f"{site.name}: {site.words()}; {', '.join(site.awaited)} waits for it",
                    "ask the hospital for `kohort-site status`",
                )

    def _is_lost(self, site: SiteStanding) -> bool:
        """Whether a site that a study needs is silent for long, before a server that hears."""
        if site.connected or not site.awaited or not self.server.alive or self.between:
            return False
        since = site.seen or self.server.started
        return site.state == "registered" and since is not None and self.time - since > SILENT

    def _other_alerts(self) -> Iterator[Alert]:
        """Certificates that end soon or wait for a signature, and runs of others."""
        for name in self.renewals:
            text = f"{name} waits for its next certificate"
            yield Alert("warning", "CERTIFICATE-WAITS", text, "kohort-server renewals")
        for one in self.ending:
            if one.severity != "info":
                text = one.line.removesuffix(f": {one.fix}")
                yield Alert(one.severity, "CERTIFICATE-ENDS", text, one.fix)
        for row in self.foreign_runs:
            if self._is_recent(str(row.get("time", ""))):
                yield Alert(
                    "warning",
                    "E-APP-UNPINNED",
                    f"a foreign run was refused at {row['time']}",
                    "who else uses this account? `last` and `ps -ef` on the server show it",
                )

    def _is_recent(self, text: str) -> bool:
        """Whether a time in a file is of the last days; one that is none is not."""
        try:
            return self.time - datetime.fromisoformat(text) < RECENT
        except (ValueError, TypeError):
            return False


def read_standing(place: ServerState, now: datetime | None = None) -> Standing:
    """Return what holds at `now`, by default this moment.

    Raises ConfigurationError where no server is set up.
    """
    now = now or datetime.now(UTC)
    found, faults = read_studies(place)
    server = life_of(place.root, now)
    studies: list[StudyStanding] = []
    declared: dict[str, Declared] = {}
    for study in found:
        with open_record(place, study) as record:
            studies.append(_study(study, record))
            declared |= _declared(study, record)
    with open_registry(place) as registry:
        known = registry.sites()
        waiting = [] if has_key(place) else waiting_requests(place, registry)
    seen = _seen(server)
    sites = [_site(one, seen, declared, studies, server, now) for one in known.values()]
    return Standing(
        time=now,
        server=server,
        studies=tuple(studies),
        unreadable={key: advise(error.code) for key, error in faults.items()},
        sites=tuple(sites),
        foreign_runs=tuple(foreign_runs(place.superlink)),
        ending=tuple(ending_certificates(place, known, now)),
        renewals=tuple(one.site for one in waiting),
    )


def _study(study: Study, record: StudyRecord) -> StudyStanding:
    """One study, from its journal."""
    absent = record.absences()
    missing = [Missing(name, one.rounds, one.since) for name, one in absent.items()]
    planned = tuple(site.name for site in study.sites)
    return StudyStanding(
        study.name, study.hash(), record.progress(), tuple(missing), planned, study.quorum
    )


def _declared(study: Study, record: StudyRecord) -> dict[str, Declared]:
    """What the sites of a study answer now in place of a result."""
    found = {}
    for site in study.sites:
        last = record.last_code(site.name)
        if last is not None:
            where = f"{study.name}, {record.round_name(last.place)}"
            found[site.name] = Declared(advise(last.code), where, last.since)
    return found


def _site(
    site: Site,
    seen: Mapping[str, datetime],
    declared: Mapping[str, Declared],
    studies: list[StudyStanding],
    server: Life,
    now: datetime,
) -> SiteStanding:
    """One site, from registry, heartbeat and journals."""
    last = seen.get(site.name)
    says = Declared(advise(site.code)) if site.code else declared.get(site.name)
    awaited = [one.name for one in studies if one.is_open and site.name in one.sites]
    return SiteStanding(
        name=site.name,
        state=site.state,
        seen=last,
        connected=server.alive and last is not None and now - last < CONNECTED,
        declared=says,
        awaited=tuple(awaited),
        fingerprint=site.fingerprint,
    )


def _seen(server: Life) -> dict[str, datetime]:
    """When the server heard each site last, as its heartbeat says; also of one that has ended."""
    rows = server.facts.get(SEEN)
    if not isinstance(rows, dict):
        return {}
    found = {}
    for name, seconds in rows.items():
        if type(seconds) in (int, float) and 0 < seconds < LAST_TIME:
            found[str(name)] = datetime.fromtimestamp(seconds, UTC)
    return found
