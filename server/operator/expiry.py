"""Which certificates end soon: the server's, the authority's, the sites'; and the catalogue.

In: the state folder, a time. Out: a lifetime of each, and an `Ending` for what is near.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from common.errors import KohortError
from common.wire import expiry
from common.wire.expiry import Ending, Lifetime
from kohort.catalogue import parse_time
from server.operator.certificates import read_certificate
from server.operator.published import read_published
from server.operator.sites import Site
from server.operator.state import ServerState

SERVER_FIX = "`kohort-server renew`"
CATALOGUE_FIX = "`kohort-server publish`"
AUTHORITY_FIX = "`kohort-server rollover`"
SITE_FIX = (
    "its daemon renews it: ask for `kohort-site status`, look at `kohort-server renewals`; "
    "else `kohort-server enrol` its request again and send it the join file"
)


def lifetimes(state: ServerState, sites: Mapping[str, Site]) -> list[Lifetime]:
    """Return every certificate of the consortium; one that is not here is left out."""
    places = [
        ("the server", state.tls / "server.crt", expiry.SERVER, SERVER_FIX),
        ("the authority", state.authority / "ca.crt", expiry.AUTHORITY, AUTHORITY_FIX),
    ]
    for name, site in sites.items():
        if site.state != "revoked":
            places.append((name, state.site_certificate(name), expiry.SITE, SITE_FIX))
    found = []
    for whose, path, days, fix in places:
        try:
            ends = read_certificate(path).not_valid_after_utc
        except KohortError:
            # one that is not here ends nothing; who needs it says so
            continue
        found.append(Lifetime(whose, ends, days, fix))
    return found + _catalogue(state)


def _catalogue(state: ServerState) -> list[Lifetime]:
    """The catalogue that was published last."""
    try:
        signed = read_published(state)
    except KohortError:
        # who publishes next is told
        return []
    if signed is None:
        return []
    ends = parse_time(signed.catalogue.expires)
    return [Lifetime("the catalogue", ends, expiry.CATALOGUE, CATALOGUE_FIX, what="")]


def ending_certificates(
    state: ServerState, sites: Mapping[str, Site], now: datetime | None = None
) -> list[Ending]:
    """Return the certificates that end soon, the first to end first."""
    return expiry.ending(lifetimes(state, sites), now)
