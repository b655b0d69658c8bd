"""Which certificates of this site end soon: its own, and the authority's.

In: the files of the join file, a time. Out: a lifetime of each, and an `Ending` for what is near.
Not covered: renewing them (client/fleet/renewal.py).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509

from client.fleet.connection import KEY_CAP_BYTES, FleetSettings
from common.errors import ConfigurationError, KohortError, damage_named
from common.storage.files import read_capped
from common.wire import expiry
from common.wire.expiry import Ending, Lifetime

SITE_FIX = (
    "`kohort-site run` renews it; if it cannot, ask the operator for a new join file: "
    "`kohort-site join FILE`"
)
AUTHORITY_FIX = "ask the operator when the authority changes (`kohort-server rollover`)"


def lifetimes(settings: FleetSettings) -> list[Lifetime]:
    """Return the certificates that this site has; one that cannot be read is left out."""
    places = [
        ("this site", settings.client_certificate, expiry.SITE, SITE_FIX),
        ("the authority", settings.ca_file, expiry.AUTHORITY, AUTHORITY_FIX),
    ]
    found = []
    for whose, path, days, fix in places:
        if path is None:
            continue
        try:
            found.append(Lifetime(whose, _last_end(path), days, fix))
        except KohortError:
            # the check of the site's own certificate names it
            continue
    return found


def ending_certificates(settings: FleetSettings, now: datetime | None = None) -> list[Ending]:
    """Return the certificates of this site that end soon, the first to end first."""
    return expiry.ending(lifetimes(settings), now)


def _last_end(path: Path) -> datetime:
    """When the last certificate of a file ends; a file may hold two authorities."""
    damage = ConfigurationError(f"{path}: not a certificate")
    if not path.is_file():
        raise damage
    text = read_capped(path, KEY_CAP_BYTES)
    with damage_named(damage):
        certificates = x509.load_pem_x509_certificates(text)
        return max(one.not_valid_after_utc for one in certificates)
