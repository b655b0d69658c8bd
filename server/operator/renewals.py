"""Renewal of the sites' certificates: a mailbox that the front fills, and who signs from it.

In: requests (common/wire/renewal.py) of sites that TLS let in. Out: answers, and new certificates.
The front holds no key: it checks a request, keeps the newest one of each site and hands out what
was issued. `kohort-server run` issues where the authority's key is in the state folder; else the
operator does (`kohort-server renewals`).
Guarantees:
1. A site asks for itself alone, in the connection of the certificate that it wants renewed.
2. A request that was answered gets the same certificate again: nothing is issued twice for it.
3. One new request a site and hour; one file a site, of at most 24 KiB.
4. Nothing is issued early: a certificate on the same key not before its last days.
5. Who issues checks all of it again: signatures, the authority, and the registry as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import KohortError, RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.wire import renewal, signing
from common.wire.handover import open_handover
from common.wire.renewal import Asked
from server.operator.authorities import has_key, issuing_folder, read_authorities, statement_text
from server.operator.certificates import (
    Authority,
    check_certificate,
    has_issued,
    load_authority,
    read_certificate,
    site_certificate,
    to_pem,
)
from server.operator.issued import fact_of, open_issued
from server.operator.sites import Registry
from server.operator.state import ServerState

EARLIEST = timedelta(days=16)  # before the end; a site asks a day later (client/fleet/renewal.py)
EVERY = timedelta(hours=1)
FILE_CAP_BYTES = 2 * renewal.REQUEST_CAP_BYTES

# what the front answers
ISSUED = 200
WAITING = 202
NOT_ASKED = 400
FOREIGN = 403
TOO_MANY = 429


class Kept(FrozenModel):
    """A request in the mailbox: when it came, its text, and whether a certificate was issued.

    One that was answered is not answered again, whatever the clocks say.
    """

    format: str = Field(pattern=r"^kohort-kept-renewal/1$")
    arrived: float
    answered: bool = False
    request: str = Field(max_length=renewal.REQUEST_CAP_BYTES)


@dataclass(frozen=True)
class Waiting:
    """A request that no certificate answers yet."""

    site: str
    asked: Asked
    certificate: x509.Certificate


# --- the front


@dataclass(frozen=True)
class Mailbox:
    """What the front does with a request."""

    state: ServerState

    def answer(
        self, site: str, der: bytes, body: bytes, sign_key: str, now: datetime | None = None
    ) -> tuple[int, bytes]:
        """Return status and body for a request in the connection of the certificate `der`.

        `site`: its name. `sign_key`: its signing key as the registry has it. The
        caller has checked that it is enrolled and not revoked now.
        """
        now = now or datetime.now(UTC)
        # (1) it asks for itself, with the certificate of this connection
        try:
            asked, present = renewal.read_request(body)
        except RefusedError:
            return NOT_ASKED, b""
        if asked.site != site or present.public_bytes(serialization.Encoding.DER) != der:
            return FOREIGN, b""
        # (2) what was issued for it
        issued = self.issued(asked, present, sign_key)
        if issued:
            stated = statement_text(self.state)
            return ISSUED, renewal.write_answer("issued", issued, stated, sign_key)
        # (3) one new request an hour, (4) not early
        kept = read_kept(self.state.renewal_file(site))
        same = kept is not None and _is_same(kept, asked)
        young = kept is not None and now.timestamp() - kept.arrived < EVERY.total_seconds()
        if kept is not None and same and (young or not kept.answered):
            return WAITING, renewal.write_answer("waiting")
        if young:
            return TOO_MANY, b""
        if _is_early(asked, present, now):
            return TOO_MANY, b""
        self._keep(site, body, now)
        return WAITING, renewal.write_answer("waiting")

    def issued(self, asked: Asked, present: x509.Certificate, sign_key: str) -> str:
        """Return the certificate that answers a request; empty while there is none.

        A new signing key has to be in the registry first.
        """
        if asked.handover and _next_sign_key(asked) != sign_key:
            return ""
        try:
            found = read_certificate(self.state.site_certificate(asked.site))
        except KohortError:
            return ""
        return to_pem(found).decode() if _answers(found, asked, present) else ""

    def _keep(self, site: str, body: bytes, now: datetime) -> None:
        """Keep a request in place of an older one."""
        path = self.state.renewal_file(site)
        with disk_faults_named("create", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fields = {
            "format": "kohort-kept-renewal/1",
            "arrived": now.timestamp(),
            "request": body.decode(),
        }
        atomic_write(path, json.dumps(fields).encode(), mode=0o600)


def _answers(found: x509.Certificate, asked: Asked, present: x509.Certificate) -> bool:
    """Whether a certificate is what a request asks for: on its key, issued after the present."""
    if fact_of(found).key != asked.node_key:
        return False
    rotated = fact_of(present).key != asked.node_key
    return rotated or found.not_valid_before_utc > present.not_valid_before_utc


def _next_sign_key(asked: Asked) -> str:
    """The signing key that a request asks for; empty for a statement that does not hold."""
    try:
        return open_handover(asked.handover.encode(), "site").new
    except RefusedError:
        return ""


def _is_early(asked: Asked, present: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate on the same key has many days left."""
    due = renewal.is_due(present, EARLIEST, now)
    return asked.node_key == fact_of(present).key and not due and not asked.handover


def _is_same(kept: Kept, asked: Asked) -> bool:
    """Whether a kept request asks for the same; its signatures differ at each asking."""
    try:
        before, _ = renewal.read_request(kept.request.encode())
    except RefusedError:
        return False
    return before.signed_bytes() == asked.signed_bytes()


def read_kept(path: Path) -> Kept | None:
    """Return a request of the mailbox; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return Kept.model_validate_json(read_capped(path, FILE_CAP_BYTES))
    except (ValidationError, KohortError):
        return None


# --- who signs


def waiting_requests(state: ServerState, registry: Registry) -> list[Waiting]:
    """Return the requests of the mailbox that nobody has answered, of sites that may renew now.

    (5) What the front has checked is checked again, against the registry as it stands.
    """
    found = []
    for name, site in registry.sites().items():
        kept = read_kept(state.renewal_file(name))
        if site.state == "revoked" or kept is None or kept.answered:
            continue
        try:
            asked, present = renewal.read_request(kept.request.encode())
        except RefusedError:
            continue
        known = asked.site == name and fact_of(present).key in site.node_keys
        if not known or not any(has_issued(one, present) for one in read_authorities(state)):
            continue
        if not Mailbox(state).issued(asked, present, site.sign_key):
            found.append(Waiting(name, asked, present))
    return found


def issue_waiting(
    state: ServerState, registry: Registry, now: datetime | None = None
) -> Iterator[str]:
    """Issue what waits in the mailbox, where the authority's key is here; yield a line for each.

    Raises ConfigurationError (E-PASSPHRASE) where the key is protected and no passphrase was given.
    """
    if not has_key(state):
        return
    authority = None
    for one in waiting_requests(state, registry):
        # the key is read once something waits, and no longer kept than that
        authority = authority or load_authority(issuing_folder(state), now=now)
        # (5) a new key is noted before it is certified; it was never used by anybody
        try:
            registry.begin_rotation(one.site, one.asked.node_key)
            yield from _hand_over(registry, one)
        except RefusedError as error:
            state.renewal_file(one.site).unlink(missing_ok=True)
            yield f"{one.site}: renewal refused, {error.code}"
            continue
        text = site_certificate(authority, one.site, one.asked.node_key, now=now)
        ends = _answer(state, one, text)
        yield f"{one.site}: certificate renewed, it ends on {ends:%Y-%m-%d}"


def _hand_over(registry: Registry, one: Waiting) -> Iterator[str]:
    """Let a site's next signing key take over, where its present one says so."""
    if not one.asked.handover:
        return
    found = open_handover(one.asked.handover.encode(), "site")
    if registry.hand_over(one.site, found):
        new = signing.fingerprint(signing.parse_public(found.new))
        yield f"{one.site}: its signing key is now {new}"


def import_issued(
    state: ServerState, registry: Registry, path: Path, now: datetime | None = None
) -> tuple[str, datetime]:
    """Take a certificate that `certify` made of a waiting request; return the site and its end.

    Raises RefusedError (E-CERTIFICATE) unless it is of exactly such a request.
    """
    trusted = read_authorities(state)[-1]
    check_certificate(path, trusted, now=now)
    certificate = read_certificate(path)
    for one in waiting_requests(state, registry):
        if renewal.name_of(certificate) != one.site:
            continue
        if fact_of(certificate).key == one.asked.node_key and is_for_a_site(certificate):
            registry.begin_rotation(one.site, one.asked.node_key)
            list(_hand_over(registry, one))
            return one.site, _answer(state, one, to_pem(certificate))
    raise RefusedError(
        f"{path}: answers no request that waits here",
        hint="`kohort-server renewals` lists what waits; `certify` signs exactly that file",
        code="E-CERTIFICATE",
    )


def certify_renewal(
    authority: Authority,
    path: Path,
    now: datetime | None = None,
    previous: x509.Certificate | None = None,
) -> tuple[bytes, str]:
    """Return the certificate (PEM) for a kept request, and the site, where the authority lies.

    Raises RefusedError unless the present certificate in it is valid now, and of this authority or
    of `previous`, which it follows: a server that lies cannot ask for another site's name or key.
    """
    kept = read_kept(path)
    if kept is None:
        raise renewal.refusal(f"{path} is no request of the mailbox")
    asked, present = renewal.read_request(kept.request.encode())
    now = now or datetime.now(UTC)
    valid = present.not_valid_before_utc <= now <= present.not_valid_after_utc
    known = has_issued(authority.certificate, present)
    known = known or (previous is not None and has_issued(previous, present))
    if not valid or not known:
        raise renewal.refusal("its present certificate is not valid now, or of another authority")
    return site_certificate(authority, asked.site, asked.node_key, now=now), asked.site


def _answer(state: ServerState, one: Waiting, text: bytes) -> datetime:
    """Keep the certificate that answers a request; return when it ends."""
    ends = keep_certificate(state, one.site, text)
    path = state.renewal_file(one.site)
    kept = read_kept(path)
    if kept is not None:
        done = kept.model_copy(update={"answered": True})
        atomic_write(path, done.model_dump_json().encode(), mode=0o600)
    return ends


def keep_certificate(state: ServerState, site: str, text: bytes) -> datetime:
    """Keep what a site is given, and note it; return when it ends."""
    certificate = x509.load_pem_x509_certificate(text)
    path = state.site_certificate(site)
    with disk_faults_named("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_issued(state.root) as issued, state.open_log() as log:
        log.note_issued(f"site:{site}", certificate)
        issued.note(site, certificate)
    atomic_write(path, text)
    return certificate.not_valid_after_utc


def is_for_a_site(certificate: x509.Certificate) -> bool:
    """Whether a certificate is a client's alone."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
