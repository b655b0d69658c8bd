"""Which certificates end soon: the server's, the authority's, the sites'.

In: the state folder, a time. Out: a line for each that ends within a month, with the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from common.errors import KohortError
from server.operator.certificates import read_certificate
from server.operator.sites import Site
from server.operator.state import ServerState

WARN = timedelta(days=30)


class Ending(NamedTuple):
    """A certificate that ends soon: whose, when, and what to do."""

    whose: str
    ends: datetime
    fix: str

    @property
    def line(self) -> str:
        """What a person reads."""
        return f"certificate of {self.whose} ends on {self.ends:%Y-%m-%d}: {self.fix}"


def ending_certificates(
    state: ServerState, sites: Mapping[str, Site], now: datetime | None = None
) -> list[Ending]:
    """Return the certificates that end within a month, the first to end first."""
    places = [
        ("the server", state.tls / "server.crt", "kohort-server renew"),
        ("the authority", state.authority / "ca.crt", "every hospital must join a new one"),
    ]
    for name, site in sites.items():
        if site.state != "revoked":
            fix = "kohort-server enrol its request again, send it the join file"
            places.append((name, state.site_certificate(name), fix))
    soon = (now or datetime.now(UTC)) + WARN
    found = []
    for whose, path, fix in places:
        try:
            ends = read_certificate(path).not_valid_after_utc
        except KohortError:
            # one that is not here ends nothing; who needs it says so
            continue
        if ends < soon:
            found.append(Ending(whose, ends, fix))
    return sorted(found, key=lambda one: one.ends)
