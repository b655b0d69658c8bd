"""The site's HTTPS connection: settings, node key, TLS, and a client that does not trust answers.

In: settings and files.
Out: an httpx client for Flower's protocol.
Guarantees: TLS 1.3 with the site's own CA alone; no redirect followed; no proxy of the environment;
no answer beyond its cap in bytes and seconds; no compressed answer.
Not covered: Flower's protocol (wire.py); what a failure means (failures.py).
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.fleet.deadline import BoundedBackend, Deadline
from common import passphrase
from common.errors import ConfigurationError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import keys

ANSWER_CAP_BYTES = 64 << 20
PROTOBUF = "application/protobuf"
KEY_CAP_BYTES = 65_536
MAX_PORT = 65_535
ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<user>[^@/\s]+@)?"
    r"(?P<host>[^\s/:@?#\[\]]+|\[[0-9a-fA-F:.]+\])(:(?P<port>[0-9]{1,5}))?(?P<slash>/?)"
)
ANSWER_TIMEOUTS = 4  # an answer may take this many timeouts in all


@dataclass(frozen=True)
class FleetSettings:
    """Where the server is and what this site shows to it; files are read at every connection."""

    url: str
    ca_file: Path
    node_key_file: Path
    state_dir: Path
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = None
    poll_s: float = 0.3
    max_message_bytes: int = 256 << 20
    max_objects: int = 4096
    inbox_bytes: int = 1 << 30
    timeout_s: float = 30.0
    retry_first_s: float = 1.0
    retry_cap_s: float = 60.0
    refused_retry_s: float = 300.0


def check_addresses(url: str, proxy: str | None) -> None:
    """Raise ConfigurationError unless the server's address and the proxy's can be called.

    A proxy's address may hold a password: it is not repeated.
    """
    server = _parse_address(url)
    if server is not None and server["scheme"] == "https" and not server["port"]:
        raise ConfigurationError(
            f"server address {url!r}: it names no port; expected https://HOST:PORT",
            hint="the address comes with the join file: ask the operator for one with the port",
        )
    if server is None or server["scheme"] != "https" or server["user"] or server["slash"]:
        raise ConfigurationError(
            f"server address {url!r}: expected https://HOST:PORT, without a path",
            hint="the address comes with the join file: ask the operator",
        )
    if proxy is not None and _parse_address(proxy) is None:
        raise ConfigurationError(
            "site.yaml: network.proxy: expected http://HOST:PORT", hint="correct it, or use null"
        )


def _parse_address(text: str) -> re.Match[str] | None:
    """Return the parts of SCHEME://[USER:PASSWORD@]HOST[:PORT][/]; None for anything else."""
    found = ADDRESS.fullmatch(text)
    if found is not None and found["port"] and not 0 < int(found["port"]) <= MAX_PORT:
        return None
    return found


def create_node_key(private: Path, public: Path, comment: str) -> None:
    """Write a new P-256 node key; refuses to replace one.

    `private` is PKCS #8 PEM with mode 0600, `public` the line that the operator registers.
    The same key signs Flower's requests and is the key of the TLS client certificate.
    """
    if private.exists():
        raise ConfigurationError(
            f"{private}: a node key is already here", hint="the server knows this site by it"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    # the private key last: with it the pair is whole
    atomic_write(public, line + b" " + comment.encode() + b"\n")
    atomic_write(private, pem, mode=0o600)


def tls_context(settings: FleetSettings) -> ssl.SSLContext:
    """Return TLS 1.3 with the site's CA alone, and the client certificate if there is one."""
    # PROTOCOL_TLS_CLIENT checks the certificate and the name; no system CA is loaded.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(settings.ca_file)
        if settings.client_certificate is not None:
            # without a password OpenSSL would ask a terminal
            context.load_cert_chain(
                settings.client_certificate,
                settings.client_key or settings.node_key_file,
                password=passphrase.current() or b"",
            )
    except (OSError, ssl.SSLError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"{settings.client_certificate}: for another key than {settings.node_key_file}",
                hint="send this site's own request file to the operator, then `kohort-site join`",
            ) from error
        raise ConfigurationError(
            f"{settings.ca_file} or {settings.client_certificate}: not usable for TLS",
            hint="both come with the operator's join file: `kohort-site join` again",
        ) from error
    return context


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the EC private key in a PEM or OpenSSH file; raises ConfigurationError."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="`kohort-site init` creates the node key"
        )
    data = read_capped(path, KEY_CAP_BYTES)
    if data.lstrip().startswith(keys.PROTECTED):
        key: object = keys.from_pem(data, path)
    else:
        key = _load_open(data, path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: expected an EC key, got {type(key).__name__}")
    return key


def _load_open(data: bytes, path: Path) -> object:
    """The key in a file without a passphrase."""
    with damage_named(ConfigurationError(f"{path}: not an unencrypted private key")):
        if b"OPENSSH" in data:
            return serialization.load_ssh_private_key(data, password=None)
        return serialization.load_pem_private_key(data, password=None)


class AnswerTooLarge(Exception):
    """The server's answer exceeded the cap in size."""


class NotProtobuf(Exception):
    """Something answered that does not speak Flower's protocol."""


class CappedClient(httpx.Client):
    """httpx with limited answers, no redirects, and no settings of the environment."""

    def __init__(
        self,
        context: ssl.SSLContext,
        proxy: str | None,
        timeout_s: float,
        media_type: str = PROTOBUF,
    ) -> None:
        super().__init__(
            verify=context,
            proxy=proxy,
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )
        self._media_type = media_type
        # httpx limits each read; the deadline limits their sum
        self._deadline = Deadline(ANSWER_TIMEOUTS * timeout_s)
        transports: list[Any] = [self._transport, *self._mounts.values()]
        for transport in filter(None, transports):
            transport._pool._network_backend = BoundedBackend(self._deadline)

    def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """Send, and read an answer of at most 64 MiB within four timeouts."""
        self._deadline.restart()
        response = super().send(request, stream=True, follow_redirects=False)
        body = bytearray()
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise NotProtobuf
            for block in response.iter_raw():
                body += block
                if len(body) > ANSWER_CAP_BYTES:
                    raise AnswerTooLarge
        finally:
            response.close()
        # Errors of a proxy or a portal may come as anything; only an answer must be of its type.
        content_type = response.headers.get("content-type", "").split(";")[0]
        if response.is_success and content_type != self._media_type:
            raise NotProtobuf
        return httpx.Response(
            response.status_code, headers=response.headers, content=bytes(body), request=request
        )
