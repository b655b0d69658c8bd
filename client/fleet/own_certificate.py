"""The site looks at its own certificate before it connects, so that a refusal has a name.

In: the certificate and CA file of the join file, the time now. Out: nothing, or why the server
would refuse them.
Not covered: whether the operator has revoked the site; only the server knows.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from client.fleet.connection import KEY_CAP_BYTES, FleetSettings
from common.errors import ConfigurationError, damage_named
from common.storage.files import read_capped

AGAIN = "ask the operator for a new join file: `kohort-site join FILE`"


class OutsideDates(ConfigurationError):
    """The certificate is not valid yet (`early`), or not any more."""

    early = False


def check_own_certificate(settings: FleetSettings, now: datetime | None = None) -> None:
    """Raise ConfigurationError unless this site's certificate is of its CA and valid now.

    `ca.crt` may hold two authorities: the one that goes and the one that comes.
    """
    path = settings.client_certificate
    if path is None:
        return
    texts = [read_capped(file, KEY_CAP_BYTES) for file in (path, settings.ca_file)]
    damage = ConfigurationError(f"{path} or {settings.ca_file}: not a certificate", hint=AGAIN)
    with damage_named(damage):
        certificate = x509.load_pem_x509_certificate(texts[0])
        authorities = x509.load_pem_x509_certificates(texts[1])
    issuers = [one for one in authorities if _has_issued(one, certificate)]
    if not issuers:
        raise ConfigurationError(f"{path}: not issued by {settings.ca_file}", hint=AGAIN)
    now = now or datetime.now(UTC)
    _check_dates("node.crt", certificate, now)
    _check_dates("ca.crt", issuers[0], now)


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether an authority signed a certificate, whatever their dates."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_dates(name: str, certificate: x509.Certificate, now: datetime) -> None:
    """Raise OutsideDates unless `now` is between the certificate's dates."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return
    fault = "has expired" if now > end else "is not valid yet"
    hint = (
        f"check this machine's clock; else {AGAIN}" if now > end else "check this machine's clock"
    )
    error = OutsideDates(
        f"{name} {fault}: valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
        f"now it is {now:%Y-%m-%d %H:%M}",
        hint=hint,
    )
    error.early = now < begin
    raise error
