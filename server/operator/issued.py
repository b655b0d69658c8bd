"""Every certificate that was issued to a site, and which of them the front has seen.

In: certificates. Out: an append-only journal, `issued.sqlite`.
A rotation and a new authority end when the new certificate was seen, not when it was issued; a
revocation list names everything that was issued and has not ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common.errors import ConfigurationError, damage_named
from common.storage.journal import Journal

FILE = "issued.sqlite"
ISSUED = "issued"
SEEN = "seen"


@dataclass(frozen=True)
class Fact:
    """What is remembered of a certificate: number, key line, its authority's key id, its end."""

    serial: str
    key: str
    authority: str
    ends: str

    @property
    def end(self) -> datetime:
        """When it ends."""
        return datetime.fromisoformat(self.ends)


class Issued:
    """The journal of one operator."""

    def __init__(self, root: Path) -> None:
        self._journal = Journal(root / FILE)

    def note(self, site: str, certificate: x509.Certificate) -> None:
        """Note that a certificate was issued to a site."""
        self._journal.append(site, ISSUED, vars(fact_of(certificate)))

    def note_seen(self, site: str, fact: Fact) -> None:
        """Note that the front let a site in with a certificate, unless it is known already."""
        if self.seen(site) != fact:
            self._journal.append(site, SEEN, vars(fact))

    def seen(self, site: str) -> Fact | None:
        """Return the certificate with which a site came last; None before its first visit."""
        for entry in reversed(self._journal.entries(site)):
            if entry.key == site and entry.state == SEEN:
                return _fact(entry.data)
        return None

    def of(self, site: str) -> list[Fact]:
        """Return everything that was issued to a site, oldest first."""
        entries = self._journal.entries(site)
        return [_fact(one.data) for one in entries if one.key == site and one.state == ISSUED]

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


@contextmanager
def open_issued(root: Path) -> Iterator[Issued]:
    """Yield the journal of an operator's state folder."""
    issued = Issued(root)
    try:
        yield issued
    finally:
        issued.close()


def fact_of(certificate: x509.Certificate) -> Fact:
    """Return what is remembered of a certificate."""
    key = certificate.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    ends = certificate.not_valid_after_utc.isoformat()
    return Fact(f"{certificate.serial_number:x}", key.decode(), issuer_id(certificate), ends)


def issuer_id(certificate: x509.Certificate) -> str:
    """Return the key id of the authority that issued a certificate; empty where it names none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return (found.key_identifier or b"").hex()


def authority_id(authority: x509.Certificate) -> str:
    """Return an authority's own key id."""
    with damage_named(ConfigurationError("ca.crt: names no key of its own")):
        found = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return found.digest.hex()


def _fact(data: dict[str, object]) -> Fact:
    """A journal entry's fact."""
    return Fact(*(str(data.get(name, "")) for name in ("serial", "key", "authority", "ends")))
