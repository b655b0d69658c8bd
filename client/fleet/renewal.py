"""Renews this site's certificate through the front, with the present one; no person is asked.

In: the files that TLS reads, a call of the server, the time. Out: the same files, renewed.
Guarantees:
1. From day 15 before its end on the server is asked, every few hours, and each minute for a while
   where somebody has to sign first.
2. What comes back is used only if it is this site's, on the key that was asked for, of an authority
   that this site trusts, and valid now.
3. A new authority counts only with the operator's signature, and never under a lower number.
4. Killed between two writes, the next start has a pair that fits (`finish_rotation`).
Not covered: an expired certificate: the operator has to send a new join file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.fleet.connection import (
    KEY_CAP_BYTES,
    CappedClient,
    FleetSettings,
    read_node_key,
    tls_context,
)
from client.fleet.failures import classify
from client.state.folder import State
from client.state.membership import read_membership
from client.state.operators import Operators
from client.state.signers import keep_handover
from common.errors import ConfigurationError, KohortError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import renewal, signing
from common.wire.authority import CAP_BYTES, Authorities, open_authorities
from common.wire.handover import open_handover, write_handover

BEFORE = timedelta(days=15)
AGAIN_S = 4 * 3600.0
SOON_S = 60.0
SOON_TRIES = 10
ISSUED = 200
WAITING = 202

Call = Callable[[FleetSettings, bytes], tuple[int, bytes]]


def call_server(settings: FleetSettings, body: bytes) -> tuple[int, bytes]:
    """Return status and body of the server's answer to a request; raises CallFailed."""
    try:
        key = read_node_key(settings.node_key_file).public_key()
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        headers = {
            "content-type": renewal.MEDIA_TYPE,
            # the front compares it with the certificate's, as in Flower's own calls
            "flwr-public-key": base64.b64encode(pem).decode(),
        }
        context = tls_context(settings)
        with CappedClient(
            context, settings.proxy, settings.timeout_s, media_type=renewal.MEDIA_TYPE
        ) as client:
            answer = client.post(settings.url + renewal.PATH, content=body, headers=headers)
            answer.raise_for_status()
            return answer.status_code, answer.content
    except (KohortError, httpx.HTTPError, OSError, ValueError) as error:
        raise classify(error) from error


@dataclass
class Renewal:
    """The renewals of one site; `turn` is one look at the clock and the files."""

    state: State
    settings: FleetSettings
    site: str
    call: Call = call_server
    tries: int = 0

    def turn(self, now: datetime | None = None) -> str:
        """Ask for a certificate if it is time; return what a person should read, or nothing.

        Raises CallFailed, or KohortError for files or an answer that cannot be used.
        """
        now = now or datetime.now(UTC)
        present = self._present()
        next_key = self._next_key()
        handover = self._handover()
        if next_key is None and not handover and not renewal.is_due(present, BEFORE, now):
            return ""
        # the new key has its certificate already, and waits for a moment without work
        if self.state.next_certificate.is_file():
            return ""
        key = read_node_key(self.settings.node_key_file)
        body = renewal.write_request(self.site, present, key, next_key or key, handover)
        status, text = self.call(self.settings, body)
        if status == WAITING:
            self.tries += 1
            return ""
        answer = renewal.read_answer(text)
        said = self.take(answer, next_key or key, now)
        if handover and answer.sign_key == open_handover(handover.encode(), "site").new:
            atomic_write(self.state.next_sign_known, b"")
            said += "; the operator knows the new signing key"
        return said

    def wait_s(self) -> float:
        """Return the seconds until the next turn."""
        if 0 < self.tries <= SOON_TRIES:
            return SOON_S
        return AGAIN_S

    def take(self, answer: renewal.Answer, key: ec.EllipticCurvePrivateKey, now: datetime) -> str:
        """Use an answer; return what a person should read."""
        # (3) the authorities, if the operator changed them
        trusted = read_capped(self.settings.ca_file, KEY_CAP_BYTES).decode()
        stated = self._new_authorities(answer.authority)
        if stated is not None:
            trusted = stated.ca
        # (2) it is this site's, on its key, of a trusted authority, valid now
        certificate = renewal.read_pem(answer.certificate)
        self._check(certificate, key, trusted, now)
        # what is trusted first: a certificate of the new authority is of no use without it
        if stated is not None:
            atomic_write(self.settings.ca_file, stated.ca.encode())
            atomic_write(self.state.authority, answer.authority.encode(), mode=0o600)
        text = answer.certificate.encode()
        self.tries = 0
        if self.state.next_node_key.is_file():
            atomic_write(self.state.next_certificate, text)
            return "certificate of the new node key: here, it counts from the next pause on"
        assert self.settings.client_certificate is not None
        atomic_write(self.settings.client_certificate, text)
        return f"certificate renewed, it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"

    def _present(self) -> x509.Certificate:
        """The certificate that this site has."""
        assert self.settings.client_certificate is not None
        text = read_capped(self.settings.client_certificate, KEY_CAP_BYTES)
        return renewal.read_pem(text.decode("ascii", "replace"))

    def _next_key(self) -> ec.EllipticCurvePrivateKey | None:
        """The key that `kohort-site rotate node` made, or None."""
        if not self.state.next_node_key.is_file():
            return None
        return read_node_key(self.state.next_node_key)

    def _handover(self) -> str:
        """The statement for the key that `kohort-site rotate signing` made; empty without one."""
        if not self.state.next_sign_key.is_file() or self.state.next_sign_known.is_file():
            return ""
        new = signing.load_private(self.state.next_sign_key)
        return write_handover("site", self.site, self.state.signing_key(), new).decode()

    def _new_authorities(self, text: str) -> Authorities | None:
        """The operator's statement, if it is newer than the one that is here; None without one."""
        if not text:
            return None
        membership = read_membership(self.state.membership)
        stated = open_authorities(text.encode(), *Operators(self.state, membership).trusted)
        known = known_number(self.state)
        if stated.number < known:
            raise renewal.refusal("the operator's statement of its authority is an older one")
        return stated if stated.number > known else None

    def _check(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        trusted: str,
        now: datetime,
    ) -> None:
        """Refuse a certificate that this site could not use."""
        if renewal.name_of(certificate) != self.site:
            raise renewal.refusal("the certificate that came is of another site")
        with damage_named(renewal.refusal("the certificate that came holds no usable key")):
            public = certificate.public_key()
        if public != key.public_key():
            raise renewal.refusal("the certificate that came is for another key")
        authorities = x509.load_pem_x509_certificates(trusted.encode())
        if not any(_has_issued(one, certificate) for one in authorities):
            raise renewal.refusal("the certificate that came is of another authority")
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise renewal.refusal("the certificate that came is not valid now")


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def known_number(state: State) -> int:
    """Return the number of the operator's newest statement here; 0 where there is none."""
    if not state.authority.is_file():
        return 0
    damage = ConfigurationError(
        f"{state.authority}: not the operator's statement", hint="`kohort-site join FILE` again"
    )
    with damage_named(damage):
        return int(json.loads(read_capped(state.authority, CAP_BYTES))["number"])


def _log_new_key(state: State) -> None:
    """Note in the log which signing key takes over."""
    old = signing.public_text(state.signing_key().public_key())
    new = signing.public_text(signing.load_private(state.next_sign_key).public_key())
    state.log.note("key-changed", once=True, old=old, new=new)


def finish_rotation(state: State, site: str) -> bool:
    """Let new keys, with what belongs to them, take the place of the old; return whether any did.

    Both are there before one is moved, so that a start after a crash goes on here. The node id
    belongs to the old key and is forgotten first.
    """
    changed = False
    if state.next_sign_known.is_file():
        # known to the operator's registry: the key first, so that a crash leaves it to be moved
        if state.next_sign_key.is_file():
            keep_handover(state, site, signing.load_private(state.next_sign_key))
            _log_new_key(state)
            state.next_sign_key.replace(state.sign_key)
        state.next_sign_known.unlink()
        changed = True
    if not state.next_certificate.is_file():
        return changed
    (state.root / "fleet" / "node-id").unlink(missing_ok=True)
    if state.next_node_key.is_file():
        public = state.next_node_key.with_suffix(".pub")
        if public.is_file():
            public.replace(state.node_key.with_suffix(".pub"))
        state.next_node_key.replace(state.node_key)
    state.next_certificate.replace(state.certificate)
    return True
