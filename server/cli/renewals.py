"""`renewals`, `rollover`: the sites' next certificates, and the authority's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from common.errors import PolicyError
from server.cli.authority import NEXT_START, issue_for_server, note_server_certificate
from server.cli.options import StateFolder
from server.cli.state_folder import load_operator_key, open_registry
from server.cli.terminal import write
from server.operator import authorities
from server.operator.authorities import has_key, write_trust
from server.operator.certificates import (
    AUTHORITY_KEY,
    has_issued,
    load_authority,
    read_certificate,
)
from server.operator.config import load_config
from server.operator.renewal import (
    NEXT_CERTIFICATE,
    check_server_files,
    forget_request,
    install_certificate,
)
from server.operator.renewals import import_issued, issue_waiting, waiting_requests
from server.operator.state import ServerState

Certificate = Annotated[
    Path | None, typer.Option(help="what `certify` made of a request that waits here")
]
Made = Annotated[
    Path | None, typer.Option(help="ca.crt of the new authority, made where its key lies")
]
Finish = Annotated[bool, typer.Option("--finish", help="drop the old authority")]
Ca = Annotated[Path | None, typer.Option(help="another folder for the new authority's key: a disk")]


def renewals(state: StateFolder, certificate: Certificate = None) -> None:
    """Issue what sites have asked for; where the authority's key is elsewhere, say what waits.

    `kohort-server run` does the first by itself.
    """
    place = ServerState(state)
    with open_registry(place) as registry:
        if certificate is not None:
            name, ends = import_issued(place, registry, certificate)
            write(f"{name}: gets it at its next request, it ends on {ends:%Y-%m-%d}\n")
            return
        for line in issue_waiting(place, registry):
            write(f"{line}\n")
        waiting = waiting_requests(place, registry)
    for one in waiting:
        write(f"{one.site} waits: {place.renewal_file(one.site)}\n")
    if not waiting:
        write("no site waits for a certificate\n")
    elif not has_key(place):
        write("next: kohort-server certify NAME.json --ca FOLDER --out NAME.crt\n")
        write("then: kohort-server renewals --certificate NAME.crt\n")


def rollover(
    state: StateFolder, finish: Finish = False, ca: Ca = None, certificate: Made = None
) -> None:
    """Replace the certificate authority without a pause.

    The first call makes a new one, which sites trust beside the old from their next renewal on.
    Given again, it says who is missing. --finish drops the old one. Where the key is elsewhere,
    --certificate takes what `authority` made there.
    """
    place = ServerState(state)
    key = load_operator_key(place)
    config = load_config(place.config)
    with open_registry(place) as registry:
        if finish:
            _finish(place)
            return
        if len(authorities.read_authorities(place)) == 1:
            if certificate is not None:
                made = read_certificate(certificate)
                authorities.adopt(place, made, key)
            else:
                made = authorities.begin(place, config.name, key, ca)
            ends = made.not_valid_after_utc
            write(f"new authority made, it ends on {ends:%Y-%m-%d}; both are trusted from now on\n")
            _say_reload(config.listen.front)
        missing = authorities.missing_sites(place, registry)
    if not has_key(place) and not (place.tls / NEXT_CERTIFICATE).is_file():
        write("the server's certificate of the new authority: kohort-server renew\n")
    if missing:
        write(f"no certificate of the new authority yet: {', '.join(missing)}\n")
        write("a site gets one when it renews, within 30 days; then: rollover --finish\n")
    else:
        write("every site has come with a certificate of the new authority\n")
        write("next: kohort-server rollover --finish\n")


def _finish(place: ServerState) -> None:
    """Drop the old authority, and give the server a certificate of the new one."""
    key = load_operator_key(place)
    config = load_config(place.config)
    following = authorities.issuing_folder(place)
    with open_registry(place) as registry:
        if (following / AUTHORITY_KEY).is_file():
            load_authority(following)  # it can be read, before anything is dropped
        elif following != place.authority:
            authorities.check_all_came(place, registry)
            # the server's certificate comes from where the key lies, before the old one goes
            made = read_certificate(following / "ca.crt")
            if (place.tls / NEXT_CERTIFICATE).is_file():
                install_certificate(place.tls, made, place.tls / NEXT_CERTIFICATE, config.host)
            _check_server(place, made, config.host)
        authorities.finish(place, registry, key)
    forget_request(place.tls)
    if has_key(place):
        issue_for_server(place, config)
    else:
        note_server_certificate(place)
    write_trust(place)
    write(f"the old authority is dropped; {NEXT_START}")
    _say_reload(config.listen.front)


def _check_server(place: ServerState, made: x509.Certificate, host: str) -> None:
    """Refuse to drop the old authority while the server has no certificate of the new one."""
    if not has_issued(made, read_certificate(place.tls / "server.crt")):
        raise PolicyError(
            "the server has no certificate of the new authority",
            hint="kohort-server renew, then certify where its key lies, then renew --certificate",
            code="E-ROLLOVER",
        )
    check_server_files(place.tls, made, host)


def _say_reload(front: str) -> None:
    """nginx reads its files when it is told to; the embedded front looks by itself."""
    if front == "nginx":
        write("now: nginx -s reload, with the options of its start; until then it refuses sites\n")
