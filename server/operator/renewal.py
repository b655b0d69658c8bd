"""The server's own certificate where the authority's key lies on another machine.

In: the folder of the server's certificate, host names. Out: a signing request, and from the
certificate that comes back new files of the server.
Guarantees: the private key never leaves its folder; a certificate of another key, name, purpose or
authority replaces nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigurationError, RefusedError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import keys
from server.operator.certificates import (
    LOOPBACK,
    PEM_CAP_BYTES,
    Authority,
    ServerFiles,
    alternative_names,
    check_certificate,
    public_key_of,
    read_certificate,
    read_key,
    sign_server_key,
    to_pem,
)

NEXT_KEY = "next.key"
NEXT_CERTIFICATE = "next.crt"  # of the authority that comes, until the old one is dropped
REQUEST = "server.request.pem"
REQUEST_HEAD = b"-----BEGIN CERTIFICATE REQUEST-----"
NAMES_CAP = 16


def server_files(tls: Path) -> ServerFiles:
    """Return where the server's certificate files lie."""
    return ServerFiles(tls / "server.crt", tls / "server.key", tls / "ca.crt")


def write_request(tls: Path, hosts: Sequence[str], secret: bytes | None) -> Path:
    """Write a new key and the request for its certificate; return the request's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = list(dict.fromkeys((*LOOPBACK, *hosts)))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[-1])])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(alternative_names(names), critical=False)
    request = builder.sign(key, hashes.SHA256())
    atomic_write(tls / NEXT_KEY, keys.to_pem(key, secret), mode=0o600)
    atomic_write(tls / REQUEST, request.public_bytes(serialization.Encoding.PEM))
    return tls / REQUEST


def certify_server(authority: Authority, path: Path) -> tuple[bytes, list[str]]:
    """Return the certificate (PEM) for a request's key, and the names that it is for.

    Raises RefusedError for anything but a request of an EC key that its own key signed.
    """
    text = read_capped(path, PEM_CAP_BYTES)
    with damage_named(_refusal(path, "no certificate request with names")):
        request = x509.load_pem_x509_csr(text)
        key = request.public_key()
        signed = request.is_signature_valid
        names = names_of(request.extensions)
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refusal(path, "not signed by an EC key of its own")
    hosts = [name for name in names if name not in LOOPBACK]
    if len(hosts) > NAMES_CAP:
        raise _refusal(path, f"{len(hosts)} names, at most {NAMES_CAP} expected")
    with damage_named(_refusal(path, "names that no certificate can hold")):
        return to_pem(sign_server_key(authority, key, hosts)), hosts


def names_of(extensions: x509.Extensions) -> list[str]:
    """Return the hosts and addresses that a certificate or a request is for."""
    found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = [str(name) for name in found.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return names


def import_certificate(tls: Path, authority: x509.Certificate, path: Path, host: str) -> datetime:
    """Let a certificate that `certify` wrote replace the server's; return when it ends.

    Raises ConfigurationError where the key of the request is not here, RefusedError for a
    certificate of another key or host.
    """
    ends = install_certificate(tls, authority, path, host)
    forget_request(tls)
    return ends


def install_certificate(tls: Path, authority: x509.Certificate, path: Path, host: str) -> datetime:
    """Do what `import_certificate` does, and keep the request and its key."""
    ends = _check_answer(tls, authority, path, host)
    certificate = read_certificate(path)
    # the key first: a crash between the two is mended by the same command
    files = server_files(tls)
    text = read_capped(tls / NEXT_KEY, PEM_CAP_BYTES)
    atomic_write(files.ca, to_pem(authority))
    atomic_write(files.key, text, mode=0o600)
    atomic_write(files.certificate, to_pem(certificate))
    return ends


def keep_certificate(tls: Path, authority: x509.Certificate, path: Path, host: str) -> datetime:
    """Keep a certificate of the authority that comes for `rollover --finish`; return its end.

    Raises as `import_certificate` does.
    """
    ends = _check_answer(tls, authority, path, host)
    atomic_write(tls / NEXT_CERTIFICATE, to_pem(read_certificate(path)))
    return ends


def forget_request(tls: Path) -> None:
    """Remove the request, its key, and what was kept of its answer."""
    for name in (NEXT_CERTIFICATE, NEXT_KEY, REQUEST):
        (tls / name).unlink(missing_ok=True)


def _check_answer(tls: Path, authority: x509.Certificate, path: Path, host: str) -> datetime:
    """Refuse a certificate that does not answer the request; return when it ends."""
    ends = check_certificate(path, authority)
    certificate = read_certificate(path)
    key = read_key(tls / NEXT_KEY)
    if public_key_of(certificate, path) != key.public_key():
        raise _refusal(path, "a certificate of another key")
    _check_server_use(certificate, path, host)
    return ends


def check_server_files(tls: Path, authority: x509.Certificate, host: str) -> ServerFiles:
    """Return the files that the server has; raises ConfigurationError where they are not usable."""
    files = server_files(tls)
    check_certificate(files.certificate, authority)
    certificate = read_certificate(files.certificate)
    if public_key_of(certificate, files.certificate) != read_key(files.key).public_key():
        raise ConfigurationError(
            f"{files.key}: not the key of {files.certificate}", hint="kohort-server renew"
        )
    _check_server_use(certificate, files.certificate, host)
    atomic_write(files.ca, to_pem(authority))
    return files


def _check_server_use(certificate: x509.Certificate, path: Path, host: str) -> None:
    """Refuse a certificate that is not a server's, or not this host's."""
    with damage_named(_refusal(path, "no server's certificate")):
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = names_of(certificate.extensions)
    if list(usage) != [ExtendedKeyUsageOID.SERVER_AUTH]:
        raise _refusal(path, "no server's certificate")
    if host not in names:
        raise _refusal(path, f"for {', '.join(names)}, expected {host}")


def _refusal(path: Path, what: str) -> RefusedError:
    return RefusedError(
        f"{path}: {what}",
        hint="`kohort-server renew` writes the request, `kohort-server certify` signs it",
        code="E-CERTIFICATE",
    )
