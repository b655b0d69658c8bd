"""The site looks at its own certificate before it connects, so that a refusal has a name.

In: the certificate and CA file of the join file, the time now. Out: nothing, or why the server
would refuse them.
Not covered: whether the operator has revoked the site; only the server knows.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509

from client.fleet.connection import KEY_CAP_BYTES, FleetSettings
from common.errors import ConfigurationError, damage_named
from common.storage.files import read_capped

AGAIN = "ask the operator for a new join file: `kohort-site join FILE`"


class OutsideDates(ConfigurationError):
    """The certificate is not valid yet, or not any more."""


def check_own_certificate(settings: FleetSettings, now: datetime | None = None) -> None:
    """Raise ConfigurationError unless this site's certificate is of its CA and valid now."""
    path = settings.client_certificate
    if path is None:
        return
    texts = [read_capped(file, KEY_CAP_BYTES) for file in (path, settings.ca_file)]
    damage = ConfigurationError(f"{path} or {settings.ca_file}: not a certificate", hint=AGAIN)
    with damage_named(damage):
        certificate, authority = map(x509.load_pem_x509_certificate, texts)
    foreign = ConfigurationError(f"{path}: not issued by {settings.ca_file}", hint=AGAIN)
    with damage_named(foreign):
        certificate.verify_directly_issued_by(authority)
    _check_dates(certificate, now or datetime.now(UTC))


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Raise OutsideDates unless `now` is between the certificate's dates."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise OutsideDates(
            f"node.crt: valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
            f"now it is {now:%Y-%m-%d %H:%M}",
            hint=f"check this machine's clock; else {AGAIN}",
        )
