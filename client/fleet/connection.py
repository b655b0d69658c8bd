"""How this site reaches the server: keys and certificates, a distrustful HTTPS client, and a declared cause for every failure.

In: settings, files, and whatever a call raised. Out: an httpx client, or a `Trouble` with a state of `client/fleet/health.py`.
Guaranteed: TLS 1.3 with the site's own CA alone; no redirect followed, no proxy of the environment, no answer beyond its
cap in bytes and seconds, no compressed answer; no word of the server in a state. Not covered: Flower's protocol
(`client/fleet/client.py`).
"""

from __future__ import annotations

import calendar
import json
import random
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.fleet import health as states
from client.fleet.health import State
from common.errors import ConfigurationError, KohortError
from common.storage.files import atomic_write, read_capped

ANSWER_CAP_BYTES = 64 << 20
ADMISSION_RETRY_S = 5.0  # a site waits for its registration by a person: let that feel immediate
PROTOBUF = "application/protobuf"
RUN_ENDED, ACTIVATION_REFUSED = 2007, 2004  # Flower's own codes
CLOCK_AHEAD_S, CLOCK_BEHIND_S = 4.0, 295.0  # Flower accepts a signature from -5 to +305 seconds old


@dataclass(frozen=True)
class FleetSettings:
    """Where the server is and what this site shows to it. Files are read anew at every connection."""

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
    timeout_s: float = 30.0
    retry_first_s: float = 1.0
    retry_cap_s: float = 60.0
    refused_retry_s: float = 300.0


def create_node_key(private: Path, public: Path, comment: str) -> None:
    """Write a new P-384 node key: `private` as PKCS #8 PEM (0600), `public` as the line that the operator registers.

    The same key signs Flower's requests and is the key of the TLS client certificate. Refuses to replace a key.
    """
    if private.exists():
        raise ConfigurationError(
            f"{private}: a node key is already here", hint="the server knows this site by it"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    atomic_write(private, pem, mode=0o600)
    atomic_write(public, line + b" " + comment.encode() + b"\n")


def tls_context(settings: FleetSettings) -> ssl.SSLContext:
    """TLS 1.3 with the site's CA alone and the client certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(settings.ca_file)
        if settings.client_certificate is not None:
            context.load_cert_chain(
                settings.client_certificate, settings.client_key or settings.node_key_file
            )
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{settings.ca_file} or {settings.client_certificate}: not usable for TLS",
            hint="the CA and the certificate come from the operator; the certificate must be for this site's node key",
        ) from error
    return context


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the EC private key at `path` (PEM, or OpenSSH's own format); raises ConfigurationError."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="`kohort-site init` creates the node key"
        )
    data = read_capped(path, 65_536)
    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH" in data
        else serialization.load_pem_private_key
    )
    try:
        key = load(data, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: not an unencrypted private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: expected an EC key, got {type(key).__name__}")
    return key


# --- what goes wrong, in declared words ------------------------------------------------------------------------------


class Trouble(Exception):
    """A call failed: the state that says why, whether waiting long is better, and whether the run has ended."""

    def __init__(
        self, state: State, facts: str = "", *, slow: bool = False, run_ended: bool = False
    ) -> None:
        super().__init__(state.code)
        self.state, self.facts, self.slow, self.run_ended = state, facts, slow, run_ended


class AnswerTooLarge(Exception):
    """The server's answer exceeded the cap in size or time."""


class NotProtobuf(Exception):
    """Something answered that does not speak Flower's protocol."""


TLS_STATES = {
    10: states.SERVER_CERTIFICATE_EXPIRED,
    62: states.SERVER_NAME_WRONG,
    64: states.SERVER_NAME_WRONG,
}


def classify(error: BaseException) -> Trouble:
    """Return the declared state for whatever a call raised (the table of the federation's reference)."""
    if isinstance(error, Trouble):
        return error
    if isinstance(error, httpx.HTTPStatusError):
        return _classify_status(error.response)
    if isinstance(error, AnswerTooLarge):
        return Trouble(states.ANSWER_TOO_LARGE, slow=True)
    if isinstance(error, (NotProtobuf, httpx.DecodingError, httpx.RemoteProtocolError)):
        return Trouble(states.NOT_THE_SERVER)
    if isinstance(error, ConfigurationError):
        return Trouble(states.CLIENT_CERTIFICATE_UNUSABLE, str(error))
    if isinstance(error, KohortError):
        return Trouble(states.MACHINE_FAULT, str(error))
    return _classify_transport(error)


def _classify_transport(error: BaseException) -> Trouble:
    """The same for errors below HTTP."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            state = TLS_STATES.get(cause.verify_code, states.SERVER_CA_UNKNOWN)
            return Trouble(state, f"TLS error {cause.verify_code}")
        if isinstance(cause, ssl.SSLError):
            refused = "ALERT" in str(cause).upper() and "CERTIFICATE" in str(cause).upper()
            return Trouble(
                states.CLIENT_CERTIFICATE_REFUSED if refused else states.TLS_FAILED, slow=refused
            )
        if isinstance(cause, socket.gaierror):
            return Trouble(states.NAME_UNKNOWN)
    if isinstance(error, httpx.ProxyError):
        return Trouble(states.PROXY_LOGIN if str(error).startswith("407") else states.PROXY_REFUSED)
    if isinstance(error, httpx.TimeoutException):
        return Trouble(states.TIMED_OUT)
    if isinstance(error, httpx.ConnectError):
        return Trouble(states.NOTHING_LISTENS)
    if isinstance(error, httpx.TransportError):
        return Trouble(states.SERVER_BUSY)
    return Trouble(states.NOT_THE_SERVER, type(error).__name__)


def _classify_status(response: httpx.Response) -> Trouble:
    """The same for an HTTP status."""
    status, code = response.status_code, _flower_code(response)
    facts = f"HTTP {status}" + (f", code {code}" if code else "")
    if response.is_redirect:
        return Trouble(states.REDIRECTED, facts, slow=True)
    if code == RUN_ENDED:
        return Trouble(states.CONNECTED, facts, run_ended=True)
    if status == 401:
        return _unauthorized(response, facts)
    if status == 412 and code == ACTIVATION_REFUSED:
        return Trouble(states.KEY_NOT_ADMITTED, facts)
    fixed = {
        400: states.CLIENT_CERTIFICATE_REFUSED,
        403: states.FORBIDDEN,
        413: states.BODY_REFUSED,
    }
    if status in fixed:
        return Trouble(fixed[status], facts, slow=True)
    busy = status == 429 or status >= 500
    return Trouble(states.SERVER_BUSY if busy else states.NOT_THE_SERVER, facts)


def _unauthorized(response: httpx.Response, facts: str) -> Trouble:
    """401: the clock is off, or the key is not (or no longer) registered."""
    ahead = _seconds_ahead(response)
    if ahead is not None and not -CLOCK_BEHIND_S < ahead < CLOCK_AHEAD_S:
        return Trouble(states.CLOCK_OFF, f"{ahead:+.0f} s against the server", slow=True)
    return Trouble(states.KEY_UNKNOWN, facts, slow=True)


def _seconds_ahead(response: httpx.Response) -> float | None:
    """How far this machine's clock is ahead of the server's."""
    try:
        server = time.strptime(response.headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return None
    return time.time() - calendar.timegm(server)


def _flower_code(response: httpx.Response) -> int:
    """Flower's error code in an error answer, 0 if it has none."""
    try:
        answer = json.loads(response.content)
    except ValueError:
        return 0
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and everything it came from."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


class Pause:
    """How long to wait after the n-th failure in a row: doubling with a cap, ±20 %; long at once after a refusal."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._failures = 0

    def reset(self) -> None:
        """The last call worked."""
        self._failures = 0

    def after(self, trouble: Trouble) -> float:
        """Seconds to wait now."""
        settings = self._settings
        wait = min(settings.retry_first_s * 2.0 ** min(self._failures, 30), settings.retry_cap_s)
        if trouble.state is states.KEY_NOT_ADMITTED:
            wait = min(wait, ADMISSION_RETRY_S)
        self._failures += 1
        return (settings.refused_retry_s if trouble.slow else wait) * random.uniform(0.8, 1.2)


# --- the distrustful client -------------------------------------------------------------------------------------------


class CappedClient(httpx.Client):
    """httpx without trust in the other side: bounded answers, no redirects, nothing of the environment."""

    def __init__(self, context: ssl.SSLContext, proxy: str | None, timeout_s: float) -> None:
        super().__init__(
            verify=context,
            proxy=proxy,
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )
        self._limit_s = 4 * timeout_s

    def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """Send, and read an answer of at most 64 MiB within four timeouts."""
        deadline = time.monotonic() + self._limit_s
        response = super().send(request, stream=True, follow_redirects=False)
        body = bytearray()
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise NotProtobuf
            for block in response.iter_raw():
                body += block
                if len(body) > ANSWER_CAP_BYTES or time.monotonic() > deadline:
                    raise AnswerTooLarge
        finally:
            response.close()
        if (
            response.is_success
            and response.headers.get("content-type", "").split(";")[0] != PROTOBUF
        ):
            raise NotProtobuf
        return httpx.Response(
            response.status_code, headers=response.headers, content=bytes(body), request=request
        )
