"""The consortium's private certificate authority, and the certificates that it issues.

In: folders, host names, a hospital's public key line. Out: PEM files; keys 0600, written whole.
Guarantees: a site certificate holds the very key that the site registers with Flower, so one
revocation ends both; it can act as a client alone; the CA's private key never leaves its folder;
an expired or foreign file is named before a server starts with it.
Not covered: revocation (the operator unregisters the node).
New keys are EC P-256 with SHA-256; certificates on older P-384 keys stay valid.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import passphrase
from common.errors import ConfigurationError, damage_named, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.wire import keys

CA_DAYS = 3650
SERVER_DAYS = 825
SITE_DAYS = 30
BACKDATED = timedelta(hours=25)  # for clocks that are up to a day apart
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)  # a clock before it is wrong: kohort is younger
PEM_CAP_BYTES = 65_536
PEM_HEAD = b"-----BEGIN CERTIFICATE-----"
NO_CHAIN = (
    "an intermediate authority is not taken: hospitals trust the consortium's one authority, which "
    "`kohort-server init` makes, and `kohort-server certify` signs with it"
)
AUTHORITY_KEY = "ca.key"
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Authority:
    """The CA's certificate and the key that signs with it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class ServerFiles:
    """Where a server's certificate, its private key and the CA certificate lie."""

    certificate: Path
    key: Path
    ca: Path


def create_authority(
    folder: Path, name: str = "kohort", *, now: datetime | None = None
) -> Authority:
    """Return a new CA, stored as `ca.crt` and `ca.key` (0600) in `folder`.

    Raises ConfigurationError where there is one already.
    """
    for path in (folder / AUTHORITY_KEY, folder / "ca.crt"):
        if path.exists():
            raise ConfigurationError(
                f"{path}: a certificate authority is already here",
                hint="every hospital trusts it: renew single certificates, do not make a new CA",
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} certificate authority")
    builder = _builder(subject, subject, key.public_key(), CA_DAYS, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    _make_folder(folder)
    atomic_write(folder / AUTHORITY_KEY, keys.to_pem(key, passphrase.current()), mode=0o600)
    atomic_write(folder / "ca.crt", to_pem(certificate))
    return Authority(certificate, key)


def load_authority(folder: Path, *, now: datetime | None = None) -> Authority:
    """Return the CA stored in `folder`.

    Raises ConfigurationError if a file is missing, foreign, expired or an intermediate's.
    """
    certificate = read_certificate(folder / "ca.crt")
    if certificate.issuer != certificate.subject:
        raise ConfigurationError(
            f"{folder / 'ca.crt'}: signed by {certificate.issuer.rfc4514_string()}, "
            "expected an authority that signs itself",
            hint=NO_CHAIN,
        )
    key = read_key(folder / AUTHORITY_KEY)
    if public_key_of(certificate, folder / "ca.crt") != key.public_key():
        raise ConfigurationError(f"{folder / 'ca.key'}: not the key of {folder / 'ca.crt'}")
    _check_dates(certificate, folder / "ca.crt", now or datetime.now(UTC))
    return Authority(certificate, key)


def issue_server_certificate(
    authority: Authority,
    folder: Path,
    hosts: Sequence[str] = (),
    *,
    days: float = SERVER_DAYS,
    secret: bytes | None = None,
    now: datetime | None = None,
) -> ServerFiles:
    """Return the files of a new server certificate, valid for this machine's loopback and `hosts`.

    An older one is replaced. `secret`: the passphrase that protects the key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sign_server_key(authority, key.public_key(), hosts, days=days, now=now)
    _make_folder(folder)
    files = ServerFiles(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    atomic_write(files.ca, to_pem(authority.certificate))
    atomic_write(files.key, keys.to_pem(key, secret), mode=0o600)
    atomic_write(files.certificate, to_pem(certificate))
    return files


def sign_server_key(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    *,
    days: float = SERVER_DAYS,
    now: datetime | None = None,
) -> x509.Certificate:
    """Return a server certificate for a key, for this machine's loopback and `hosts`."""
    names = list(dict.fromkeys((*LOOPBACK, *hosts)))
    builder = _leaf(authority, _name(names[-1]), key, days, ExtendedKeyUsageOID.SERVER_AUTH, now)
    builder = builder.add_extension(alternative_names(names), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Return hosts as TLS compares them."""
    return x509.SubjectAlternativeName([_general_name(name) for name in names])


def issue_site_certificate(
    authority: Authority, site: str, public_key: str, out: Path, *, days: float = SITE_DAYS
) -> None:
    """Write the client certificate of `site` to `out`.

    `public_key`: its line `ecdsa-sha2-nistp256 AAAA...`.
    """
    atomic_write(out, site_certificate(authority, site, public_key, days=days))


def site_certificate(
    authority: Authority,
    site: str,
    public_key: str,
    *,
    days: float = SITE_DAYS,
    now: datetime | None = None,
) -> bytes:
    """Return the client certificate of `site` as PEM text."""
    key = parse_site_key(public_key)
    builder = _leaf(authority, _name(site), key, days, ExtendedKeyUsageOID.CLIENT_AUTH, now)
    return to_pem(builder.sign(authority.key, hashes.SHA256()))


def parse_site_key(public_key: str) -> ec.EllipticCurvePublicKey:
    """Return the EC key in a site's OpenSSH public key line.

    Raises ConfigurationError for any other kind.
    """
    expected = "expected one line `ecdsa-sha2-nistp256 AAAA...` (the site's keys/node.pub)"
    with damage_named(ConfigurationError(f"not an OpenSSH public key; {expected}")):
        key = serialization.load_ssh_public_key(" ".join(public_key.split()[:2]).encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"a {type(key).__name__}; {expected}")
    return key


def check_certificate(
    path: Path, authority: x509.Certificate, *, now: datetime | None = None
) -> datetime:
    """Return when the certificate at `path` expires (UTC).

    Raises ConfigurationError if it is expired or not this CA's.
    """
    certificate = read_certificate(path)
    hint = "use the CA file and the certificate of the same consortium"
    if _is_chain(path):
        hint = NO_CHAIN
    foreign = ConfigurationError(
        f"{path}: not issued by {authority.subject.rfc4514_string()}", hint=hint
    )
    with damage_named(foreign):
        certificate.verify_directly_issued_by(authority)
    _check_dates(certificate, path, now or datetime.now(UTC))
    return certificate.not_valid_after_utc


def has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_authority(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is valid now and of an authority that signs itself."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    now = datetime.now(UTC)
    valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    return basic.ca and valid and has_issued(certificate, certificate)


def _is_chain(path: Path) -> bool:
    """Whether a file holds certificates of authorities behind its own."""
    return read_capped(path, PEM_CAP_BYTES).count(PEM_HEAD) > 1


def read_certificate(path: Path) -> x509.Certificate:
    """Return the first PEM certificate in `path`; raises ConfigurationError if there is none."""
    _must_exist(path)
    data = read_capped(path, PEM_CAP_BYTES)
    damage = ConfigurationError(
        f"{path}: not a PEM certificate", hint="put back the file that kohort-server wrote"
    )
    with damage_named(damage):
        certificate = x509.load_pem_x509_certificate(data)
        # names are parsed when they are asked for: damage there is found now
        for name in (certificate.subject, certificate.issuer):
            name.rfc4514_string()
        return certificate


def public_key_of(certificate: x509.Certificate, path: Path) -> object:
    """Return the key in a certificate; raises ConfigurationError for one of an unknown kind."""
    with damage_named(ConfigurationError(f"{path}: holds no usable key")):
        return certificate.public_key()


def _check_dates(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    """Refuse a certificate outside its dates."""
    if now > certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}", hint="issue a new one"
        )
    if now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        raise ConfigurationError(
            f"{path}: not valid before {start:%Y-%m-%d %H:%M} UTC",
            hint="check this machine's clock",
        )


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the EC private key at `path`; raises ConfigurationError."""
    _must_exist(path)
    key = keys.from_pem(read_capped(path, PEM_CAP_BYTES), path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: expected an EC key, got {type(key).__name__}")
    return key


def _must_exist(path: Path) -> None:
    """A missing file is a mistake in a configuration, not a fault of the disk."""
    if path.is_file():
        return
    hint = "`kohort-server init` creates the authority, `kohort-server certify` signs for the rest"
    if path.name == AUTHORITY_KEY:
        hint = (
            "is the authority's key elsewhere? There `kohort-server certify` signs; here "
            "`enrol --certificate` and `renew --certificate` take what it wrote"
        )
    raise ConfigurationError(f"{path}: no such file", hint=hint)


def _make_folder(folder: Path) -> None:
    """A folder that only its owner enters."""
    with disk_faults_named("create", folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _leaf(
    authority: Authority,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
    usage: x509.ObjectIdentifier,
    now: datetime | None,
) -> x509.CertificateBuilder:
    """A certificate that signs nothing and does one thing; it ends with its authority."""
    now = now or datetime.now(UTC)
    left = (authority.certificate.not_valid_after_utc - now) / timedelta(days=1)
    builder = _builder(subject, authority.certificate.subject, key, min(days, left), now)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
        critical=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
    now: datetime | None = None,
) -> x509.CertificateBuilder:
    """What every certificate of ours has; raises ConfigurationError for a clock that is wrong."""
    now = now or datetime.now(UTC)
    if now < EARLIEST:
        raise ConfigurationError(
            f"this machine's clock says {now:%Y-%m-%d}, expected {EARLIEST:%Y} or later",
            hint="set the clock, then give the same command again: a certificate issued now would "
            "be of no use",
        )
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(min(now, now + timedelta(days=days)) - BACKDATED)
    builder = builder.not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """CA: sign certificates and revocation lists. Leaf: sign handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    """A subject of one field (at most 64 characters, as X.520 wants it)."""
    if not 1 <= len(common_name) <= 64:
        raise ConfigurationError(
            f"certificate name {common_name!r}: {len(common_name)} characters, expected 1 to 64"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    """A host as the alternative name that TLS compares: an address or a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def to_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)
