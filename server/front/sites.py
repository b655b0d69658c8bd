"""Who may pass the front: the site behind a certificate, as the registry stands now.

In: the registry's file, a certificate (DER). Out: a `Visitor`, or None.
Guarantees: a change of the registry counts from the next request on; certificate, node key and
site name belong together.
Not covered: whether the CA signed the certificate (TLS checks that).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import ConfigurationError, KohortError
from server.operator.certificates import parse_site_key
from server.operator.issued import Fact, Issued, fact_of
from server.operator.sites import Registry, Site

REMEMBERED = 4096


@dataclass(frozen=True)
class Visitor:
    """A certificate that was read: its name, its key as Flower's header spells it, its end."""

    name: str
    key: bytes
    ends: datetime
    fact: Fact | None = None


def read_visitor(der: bytes) -> Visitor | None:
    """Return what a certificate says; None for one without a name or an EC key."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = certificate.public_key()
        fact = fact_of(certificate)
    except Exception:  # a stranger's bytes: whatever the library raises, it is no visitor
        return None
    if len(names) != 1 or not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    return Visitor(str(names[0].value), header_of(key), certificate.not_valid_after_utc, fact)


def header_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a key as Flower's header spells it: base64 of its PEM."""
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(pem)


class Sites:
    """The enrolled sites, read again whenever another process has changed the registry."""

    def __init__(self, path: Path) -> None:
        self._registry = Registry(path)
        self._watch = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self._version = -1
        self._keys: dict[str, set[bytes]] = {}
        self._issued = Issued(path.parent)
        self._seen: dict[str, Fact] = {}
        self._visitors: dict[bytes, Visitor | None] = {}

    def visitor(self, der: bytes, now: datetime | None = None) -> Visitor | None:
        """Return the site of a certificate, or None unless it is enrolled and not revoked now."""
        digest = hashlib.sha256(der).digest()
        if digest not in self._visitors:
            if len(self._visitors) >= REMEMBERED:
                self._visitors.clear()
            self._visitors[digest] = read_visitor(der)
        found = self._visitors[digest]
        if found is None or (now or datetime.now(UTC)) > found.ends:
            return None
        if found.key not in self._enrolled().get(found.name, ()):
            return None
        self._note_seen(found)
        return found

    def _note_seen(self, visitor: Visitor) -> None:
        """Note the first visit with a certificate; a disk that is full hinders no request."""
        if visitor.fact is not None and self._seen.get(visitor.name) != visitor.fact:
            with contextlib.suppress(KohortError):
                self._issued.note_seen(visitor.name, visitor.fact)
            self._seen[visitor.name] = visitor.fact

    def sign_key(self, name: str) -> str:
        """Return the line of a site's signing key, as the registry stands."""
        return self._registry.get(name).sign_key

    def all(self) -> dict[str, Site]:
        """Return every site as the registry stands.

        A second registry in this process would let go of the locks that this one holds.
        """
        return self._registry.sites()

    def _enrolled(self) -> dict[str, set[bytes]]:
        """The node keys of every site that is not revoked, by name; two while it changes."""
        version = int(self._watch.execute("PRAGMA data_version").fetchone()[0])
        if version != self._version:
            self._keys = self._read()
            self._version = version
        return self._keys

    def _read(self) -> dict[str, set[bytes]]:
        """The keys as the registry stands."""
        keys: dict[str, set[bytes]] = {}
        for name, site in self._registry.sites().items():
            if site.state == "revoked":
                continue
            with contextlib.suppress(ConfigurationError):
                keys[name] = {header_of(parse_site_key(line)) for line in site.node_keys}
        return keys

    def close(self) -> None:
        """Close the registry."""
        self._watch.close()
        self._registry.close()
        self._issued.close()
