"""Everything that the operator's page shows, read from disk.

In: the state folder, the folder of releases, a time. Out: an `Overview`.
Guarantees: nothing is changed; no private key is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.alerts import Alert
from common.wire.expiry import Lifetime, severity_of
from server.operator.config import Limits, load_config
from server.operator.expiry import lifetimes
from server.operator.hand_over import operator_keys
from server.operator.opening import check_set_up, open_registry
from server.operator.state import ServerState
from server.page import alerts
from server.page.disk import DiskRow, read_disk
from server.page.releases import ReleaseRow, read_releases
from server.rounds.standing import Standing, read_standing


@dataclass(frozen=True)
class CertificateRow:
    """A certificate: whose it is, when it ends, whole days left, how urgent that is, the fix."""

    whose: str
    ends: datetime
    days: int
    severity: str
    fix: str


@dataclass(frozen=True)
class Overview:
    """What the page shows. `releases_in`: the folder that was named, None for none."""

    name: str
    state: Path
    standing: Standing
    certificates: tuple[CertificateRow, ...]
    disk: tuple[DiskRow, ...]
    releases_in: Path | None
    releases: tuple[ReleaseRow, ...]

    def alerts(self) -> tuple[Alert, ...]:
        """Return what a person should mend, errors first."""
        own = [*alerts.of_releases(self.releases), *alerts.of_disk(self.disk)]
        return alerts.sort_alerts([*self.standing.alerts(), *own])


def read_overview(
    place: ServerState, releases_in: Path | None = None, now: datetime | None = None
) -> Overview:
    """Return what holds at `now`, by default this moment.

    Raises ConfigurationError where no server is set up, or server.yaml cannot be read.
    """
    now = now or datetime.now(UTC)
    check_set_up(place)
    name = ""
    limits = Limits()
    if place.config.is_file():
        config = load_config(place.config)
        name, limits = config.name, config.limits
    rows = read_releases(releases_in, operator_keys(place)) if releases_in is not None else ()
    return Overview(
        name=name,
        state=place.root,
        standing=read_standing(place, now),
        certificates=_certificates(place, now),
        disk=read_disk(place, limits, releases_in),
        releases_in=releases_in,
        releases=rows,
    )


def _certificates(place: ServerState, now: datetime) -> tuple[CertificateRow, ...]:
    """Every certificate, the first to end first."""
    with open_registry(place) as registry:
        found = lifetimes(place, registry.sites())
    return tuple(_row(one, now) for one in sorted(found, key=lambda one: one.ends))


def _row(one: Lifetime, now: datetime) -> CertificateRow:
    """One certificate."""
    severity = severity_of(one.ends, one.days, now) or ""
    return CertificateRow(one.whose, one.ends, (one.ends - now).days, severity, one.fix)
