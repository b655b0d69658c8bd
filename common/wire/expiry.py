"""When a certificate's end is worth a word: one rule for both sides.

In: whose certificate it is, when it ends, the days at which a person is told. Out: an `Ending`.
Not covered: which certificates there are (client/fleet/expiry.py, server/operator/expiry.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

Severity = Literal["info", "warning", "error"]


class Days(NamedTuple):
    """From how many days before the end on a certificate is named, and how loudly."""

    info: int
    warning: int
    error: int


SERVER = Days(30, 14, 3)
# a site renews by itself from day 15 on: until then there is nothing to say
SITE = Days(14, 14, 3)
# every site has to renew once before an authority may go, which takes a month
AUTHORITY = Days(90, 60, 30)


# a reader refuses a catalogue that has ended
CATALOGUE = Days(21, 14, 3)


@dataclass(frozen=True)
class Lifetime:
    """A certificate: whose it is, when it ends, and what a person does about it.

    `what`: the words before whose it is; another thing than a certificate has its own.
    """

    whose: str
    ends: datetime
    days: Days
    fix: str
    what: str = "certificate of "


class Ending(NamedTuple):
    """A certificate that ends soon, or has ended."""

    whose: str
    ends: datetime
    severity: Severity
    fix: str
    ended: bool = False
    what: str = "certificate of "

    @property
    def line(self) -> str:
        """What a person reads."""
        verb = "ended" if self.ended else "ends"
        return f"{self.what}{self.whose} {verb} on {self.ends:%Y-%m-%d}: {self.fix}"


def severity_of(ends: datetime, days: Days, now: datetime) -> Severity | None:
    """Return how loudly an end is named at `now`; None while it is far away."""
    left = ends - now
    if left < timedelta(days=days.error):
        return "error"
    if left < timedelta(days=days.warning):
        return "warning"
    if left < timedelta(days=days.info):
        return "info"
    return None


def ending(lifetimes: Iterable[Lifetime], now: datetime | None = None) -> list[Ending]:
    """Return what ends soon at `now`, the first to end first."""
    now = now or datetime.now(UTC)
    found = []
    for one in lifetimes:
        severity = severity_of(one.ends, one.days, now)
        if severity is not None:
            ended = one.ends < now
            found.append(Ending(one.whose, one.ends, severity, one.fix, ended, one.what))
    return sorted(found, key=lambda one: one.ends)
