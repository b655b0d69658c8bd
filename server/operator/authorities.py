"""The authorities that a consortium trusts: one, or two while the old one is replaced.

In: the state folder. Out: their certificates, the folder that issues to sites, a signed statement.
`ca/` holds the authority in use, `ca/next/` the one that comes. Sites get certificates of the next
one and trust both; the server shows one of the old until every site came with a new one.
Guarantees: the statement's number grows, so that no site goes back to an authority that was
dropped.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from common.audit_log.log import TIME
from common.errors import ConfigurationError, PolicyError, RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.wire import authority as statements
from server.operator.certificates import (
    AUTHORITY_KEY,
    PEM_CAP_BYTES,
    create_authority,
    has_issued,
    is_authority,
    load_authority,
    read_certificate,
    to_pem,
)
from server.operator.issued import authority_id, open_issued
from server.operator.sites import Registry
from server.operator.state import ServerState

NEXT = "next"
PREVIOUS = "previous.crt"  # beside the key of an authority: the one before it
STATEMENT = "authority.json"


def issuing_folder(state: ServerState) -> Path:
    """Return the folder of the authority that issues to sites: the next one if there is one."""
    following = state.authority / NEXT
    return following if (following / "ca.crt").is_file() else state.authority


def has_key(state: ServerState) -> bool:
    """Whether certificates of sites can be issued here."""
    return (issuing_folder(state) / AUTHORITY_KEY).is_file()


def read_authorities(state: ServerState) -> list[x509.Certificate]:
    """Return the authorities that are trusted, the one in use first."""
    folders = dict.fromkeys((state.authority, issuing_folder(state)))
    return [read_certificate(folder / "ca.crt") for folder in folders]


def trusted_pem(state: ServerState) -> str:
    """Return what sites and the front trust, as one PEM text."""
    return "".join(to_pem(one).decode() for one in read_authorities(state))


def write_trust(state: ServerState) -> None:
    """Let the front trust what is trusted; it reads the file at its start and on SIGHUP."""
    atomic_write(state.tls / "ca.crt", trusted_pem(state).encode())


def statement_text(state: ServerState) -> str:
    """Return the signed statement for sites; empty where the authority was never replaced."""
    path = state.authority / STATEMENT
    if not path.is_file():
        return ""
    return read_capped(path, statements.CAP_BYTES).decode("utf-8", "replace")


def begin(
    state: ServerState,
    name: str,
    key: Ed25519PrivateKey,
    elsewhere: Path | None = None,
    *,
    now: datetime | None = None,
) -> x509.Certificate:
    """Return the certificate of a new authority, which sites trust beside the old from now on.

    `elsewhere`: the folder for its key, where that does not lie here. Raises PolicyError while
    another one is being replaced.
    """
    following = state.authority / NEXT
    if (following / "ca.crt").is_file():
        raise PolicyError(
            "the authority is being replaced already",
            hint="kohort-server rollover says who is missing; --finish ends it",
        )
    if elsewhere is None:
        shutil.rmtree(following, ignore_errors=True)  # an earlier try without a certificate
        part = state.authority / f"{NEXT}.part"
        shutil.rmtree(part, ignore_errors=True)
        made = create_authority(part, name, now=now)
        # the statement before the folder: whatever is issued from now on is known to sites
        _note_made(state, made.certificate)
        _state(state, [read_certificate(state.authority / "ca.crt"), made.certificate], key)
        with disk_faults_named("rename", part):
            part.rename(following)
        write_trust(state)
        return made.certificate
    present = read_certificate(state.authority / "ca.crt")
    certificate = _follow(present, elsewhere, name, now)
    adopt(state, certificate, key)
    return certificate


def succeed(folder: Path, successor: Path, *, now: datetime | None = None) -> x509.Certificate:
    """Return the certificate of a new authority, made where the key of the present one lies.

    `folder`: the present one's, `successor`: the new one's. That remembers whom it follows: it
    renews the certificates of both.
    """
    present = load_authority(folder, now=now).certificate
    [common_name] = present.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(common_name.value).removesuffix(" certificate authority")
    return _follow(present, successor, name, now)


def _follow(
    present: x509.Certificate, folder: Path, name: str, now: datetime | None
) -> x509.Certificate:
    """A new authority in `folder`, which knows the present one."""
    with disk_faults_named("create", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(folder / PREVIOUS, to_pem(present))
    return create_authority(folder, name, now=now).certificate


def read_previous(folder: Path) -> x509.Certificate | None:
    """Return the authority that the one in `folder` follows; None for the first."""
    path = folder / PREVIOUS
    return read_certificate(path) if path.is_file() else None


def adopt(state: ServerState, made: x509.Certificate, key: Ed25519PrivateKey) -> None:
    """Let sites trust a new authority, whose key lies elsewhere, beside the old.

    Raises PolicyError while another one is being replaced, RefusedError for a certificate that is
    no authority's, or the present one's.
    """
    following = state.authority / NEXT
    if (following / "ca.crt").is_file():
        raise PolicyError(
            "the authority is being replaced already",
            hint="kohort-server rollover says who is missing; --finish ends it",
        )
    present = read_certificate(state.authority / "ca.crt")
    if not is_authority(made) or made.public_key() == present.public_key():
        raise RefusedError(
            "the certificate is not a new authority's",
            hint="`kohort-server authority` makes one where the present one's key lies",
            code="E-CERTIFICATE",
        )
    _note_made(state, made)
    _state(state, [present, made], key)
    with disk_faults_named("create", following):
        following.mkdir(mode=0o700, exist_ok=True)
    atomic_write(following / "ca.crt", to_pem(made))
    write_trust(state)


def issuer_of(state: ServerState, certificate: x509.Certificate) -> x509.Certificate:
    """Return the trusted authority that issued a certificate; the one in use where none did."""
    found = read_authorities(state)
    return next((one for one in found if has_issued(one, certificate)), found[0])


def state_again(state: ServerState, key: Ed25519PrivateKey) -> None:
    """Sign what is trusted once more, under the operator's new key, if it was ever stated."""
    if statement_text(state):
        _state(state, read_authorities(state), key)


def missing_sites(state: ServerState, registry: Registry) -> list[str]:
    """Return the sites that have not come with a certificate of the next authority."""
    wanted = authority_id(read_authorities(state)[-1])
    found = []
    with open_issued(state.root) as issued:
        for name, site in registry.sites().items():
            seen = issued.seen(name)
            if site.state != "revoked" and (seen is None or seen.authority != wanted):
                found.append(name)
    return found


def check_all_came(state: ServerState, registry: Registry) -> None:
    """Raise PolicyError (E-ROLLOVER) while a site has a certificate of the old authority only."""
    missing = missing_sites(state, registry)
    if missing:
        raise PolicyError(
            f"{', '.join(missing)}: came with no certificate of the new authority yet",
            hint="a site renews within 15 days while its daemon runs; send one that does not a new "
            "join file, or revoke it",
            code="E-ROLLOVER",
        )


def finish(state: ServerState, registry: Registry, key: Ed25519PrivateKey) -> None:
    """Drop the old authority and its key. Then the server needs a certificate of the new one.

    Killed anywhere, the same command goes on.
    Raises PolicyError (E-ROLLOVER) while a site has an old certificate only.
    """
    following = state.authority / NEXT
    if not (following / "ca.crt").is_file():
        raise PolicyError("no authority is being replaced", hint="kohort-server rollover begins it")
    check_all_came(state, registry)
    made = read_certificate(following / "ca.crt")
    old = authority_id(read_certificate(state.authority / "ca.crt"))
    if old != authority_id(made):
        with state.open_log() as log:
            log.note("authority-dropped", once=True, authority=old)
    _state(state, [made], key)
    with disk_faults_named("write", state.authority):
        if (following / AUTHORITY_KEY).is_file():
            text = read_capped(following / AUTHORITY_KEY, PEM_CAP_BYTES)
            atomic_write(state.authority / AUTHORITY_KEY, text, mode=0o600)
        else:
            (state.authority / AUTHORITY_KEY).unlink(missing_ok=True)
        atomic_write(state.authority / "ca.crt", to_pem(made))
        shutil.rmtree(following)
    write_trust(state)


def check_statement(state: ServerState, operator: Ed25519PublicKey) -> int:
    """Return the number of the statement; 0 where there is none. Raises RefusedError."""
    text = statement_text(state)
    return statements.open_authorities(text.encode(), operator).number if text else 0


def _state(state: ServerState, trusted: list[x509.Certificate], key: Ed25519PrivateKey) -> None:
    """Sign what is trusted from now on, under the next number."""
    pem = "".join(to_pem(one).decode() for one in trusted)
    text = statements.sign_authorities(_number(state) + 1, pem, key)
    atomic_write(state.authority / STATEMENT, text)


def _note_made(state: ServerState, made: x509.Certificate) -> None:
    """Note in the log that there is a new authority."""
    ends = made.not_valid_after_utc.strftime(TIME)
    with state.open_log() as log:
        log.note("authority-made", once=True, authority=authority_id(made), ends=ends)


def _number(state: ServerState) -> int:
    """The number of the last statement, whoever signed it; 0 where there is none."""
    text = statement_text(state)
    if not text:
        return 0
    try:
        return statements.Authorities.model_validate_json(text).number
    except ValueError as error:
        raise ConfigurationError(
            f"{state.authority / STATEMENT}: not the statement that was written",
            hint="put back the copy of the state folder's ca/",
        ) from error
