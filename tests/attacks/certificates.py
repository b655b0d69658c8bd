"""Who knocks at the server's port: certificates that an outsider may hold, and what TLS shows.

In: the operator's state folder (an attack needs no more than what is made here), a folder.
Out: a `Caller` each.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.fleet.connection import create_node_key
from common.wire import signing
from server.front.sites import header_of
from server.operator.certificates import (
    create_authority,
    issue_site_certificate,
    load_authority,
    parse_site_key,
)
from server.operator.requests import Request
from server.operator.sites import Registry
from server.operator.state import ServerState

CA = "ca.crt"
TOMORROW = timedelta(days=1)


@dataclass(frozen=True)
class Caller:
    """One who connects: a certificate and its key, the node key that the header names.

    `certificate` None: none is shown. `verifies`: it has the CA file. `member`: enrolled now.
    """

    name: str
    certificate: Path | None = None
    key: Path | None = None
    header: str = ""
    verifies: bool = True
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    plain: bool = False
    member: bool = False

    def context(self, ca: Path) -> ssl.SSLContext:
        """TLS as this caller speaks it."""
        context = ssl.create_default_context(cafile=str(ca))
        if not self.verifies:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.maximum_version = self.newest
        if self.certificate is not None and self.key is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Keys:
    """A node key of someone, and Flower's header for it."""

    folder: Path
    public: str
    header: str

    @classmethod
    def new(cls, folder: Path, name: str) -> Keys:
        """A fresh key."""
        create_node_key(folder / "node.key", folder / "node.pub", name)
        public = (folder / "node.pub").read_text()
        return cls(folder, public, header_of(parse_site_key(public)).decode())

    @property
    def private(self) -> Path:
        """The private key's file."""
        return self.folder / "node.key"


def enrol(state: ServerState, name: str, keys: Keys) -> None:
    """Enrol a site, as the operator does."""
    sign_key = signing.public_text(signing.new_key().public_key())
    registry = Registry(state.sites)
    registry.enrol(
        Request(
            format="kohort-request/1",
            site=name,
            node_key=keys.public,
            sign_key=sign_key,
            signature="",
        )
    )
    registry.close()


def own_certificate(keys: Keys, path: Path) -> None:
    """Write a certificate that its own key signed, under an enrolled name."""
    key = serialization.load_pem_private_key(keys.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    dated_certificate(key, key, "hospital-a", path, -TOMORROW)


def dated_certificate(
    subject: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
    name: str,
    path: Path,
    begins: timedelta,
    issued_by: x509.Name | None = None,
) -> None:
    """Write a client certificate that begins so long from now and is good for ten days."""
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) + begins
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(issued_by or named)
        .public_key(subject.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=10))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(issuer, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def early_certificate(state: ServerState, name: str, keys: Keys, path: Path) -> None:
    """Write a certificate of the real CA that is not valid before tomorrow."""
    authority = load_authority(state.authority)
    key = serialization.load_pem_private_key(keys.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = authority.key
    assert isinstance(issuer, ec.EllipticCurvePrivateKey)
    dated_certificate(key, issuer, name, path, TOMORROW, authority.certificate.subject)


def callers(state: ServerState, folder: Path) -> Iterator[Caller]:
    """Yield everyone who has no business here, and one member whose certificate is in order."""
    authority = load_authority(state.authority)
    keys = {name: Keys.new(folder / name, name) for name in NAMES}
    certificate = {name: folder / name / "node.crt" for name in NAMES}

    # certificates of the consortium's CA
    for name in ("clinic-a", "clinic-b", "left", "late", "early", "stranger"):
        issue_site_certificate(authority, name, keys[name].public, certificate[name])
        if name != "stranger":
            enrol(state, name, keys[name])
    issue_site_certificate(authority, "late", keys["late"].public, certificate["late"], days=-1)
    early_certificate(state, "early", keys["early"], certificate["early"])
    issue_site_certificate(authority, "clinic-a", keys["masked"].public, certificate["masked"])
    registry = Registry(state.sites)
    registry.revoke("left")
    registry.close()
    # certificates of others
    own_certificate(keys["own"], certificate["own"])
    foreign = create_authority(folder / "foreign-ca")
    issue_site_certificate(foreign, "clinic-a", keys["foreign"].public, certificate["foreign"])

    def shows(name: str, what: str, **more: object) -> Caller:
        values = {"header": keys[name].header, **more}
        return Caller(what, certificate[name], keys[name].private, **values)  # type: ignore[arg-type]

    yield Caller("nothing, not even TLS", plain=True)
    yield Caller("TLS without a certificate", verifies=False)
    yield Caller("the CA file", header=keys["clinic-a"].header)
    yield shows("own", "a certificate that it signed itself")
    yield shows("foreign", "a certificate of another CA")
    yield shows("late", "an expired certificate")
    yield shows("early", "a certificate that is not valid yet")
    yield shows("left", "a revoked certificate")
    yield shows("stranger", "a certificate of no enrolled site")
    yield shows("masked", "an enrolled name on another key")
    yield shows("clinic-a", "site A's certificate, site B's key", header=keys["clinic-b"].header)
    yield shows("clinic-a", "site A's certificate, no key", header="")
    old = ssl.TLSVersion.TLSv1_2
    yield shows("clinic-a", "site A's certificate over TLS 1.2", newest=old)
    yield shows("clinic-a", "site A's certificate and key", member=True)


NAMES = (
    "clinic-a",
    "clinic-b",
    "left",
    "late",
    "early",
    "stranger",
    "masked",
    "own",
    "foreign",
)
