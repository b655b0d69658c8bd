"""`certify`, `renew`, `protect`: the consortium's keys and certificates."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import passphrase
from common.errors import ConfigurationError
from common.storage.files import atomic_write, read_capped
from common.wire import keys, signing
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import check_set_up
from server.cli.terminal import write
from server.operator.authorities import (
    has_key,
    issuer_of,
    read_authorities,
    read_previous,
    succeed,
    write_trust,
)
from server.operator.certificates import (
    AUTHORITY_KEY,
    PEM_CAP_BYTES,
    ServerFiles,
    issue_server_certificate,
    load_authority,
    read_certificate,
    read_key,
    site_certificate,
)
from server.operator.config import ServerConfig, load_config
from server.operator.renewal import (
    REQUEST_HEAD,
    certify_server,
    import_certificate,
    keep_certificate,
    server_files,
    write_request,
)
from server.operator.renewals import certify_renewal, read_kept
from server.operator.requests import read_request
from server.operator.state import ServerState

NEXT_START = "a running server takes it on SIGHUP\n"


def certify(
    request: Annotated[
        Path, typer.Argument(help="a site's NAME.request.json or renewal, or the server's request")
    ],
    ca: Annotated[Path, typer.Option(help="the authority's folder: ca.key and ca.crt")],
    out: Annotated[Path, typer.Option(help="certificate to write")],
) -> None:
    """Sign a certificate where the authority's key lies; needs nothing else of the server.

    `enrol --certificate`, `renewals --certificate` and `renew --certificate` take it.
    """
    check_folder("--out", out.parent)
    authority = load_authority(ca)
    if read_kept(request) is not None:
        previous = read_previous(ca)
        text, site_name = certify_renewal(authority, request, previous=previous)
        write(f"a certificate of {site_name}, renewed: its present one signed for it\n")
    elif request.is_file() and read_capped(request, PEM_CAP_BYTES).startswith(REQUEST_HEAD):
        text, hosts = certify_server(authority, request)
        write(f"a server's certificate, for {', '.join(hosts) or 'this machine alone'}\n")
    else:
        site = read_request(request)
        text = site_certificate(authority, site.site, site.node_key)
        public = signing.parse_public(site.sign_key)
        write(f"a certificate of {site.site}, signing key {signing.fingerprint(public)}\n")
    atomic_write(out, text)
    write(f"written {out}\n")


def authority(
    ca: Annotated[Path, typer.Option(help="the present authority's folder: ca.key and ca.crt")],
    out: Annotated[Path, typer.Option(help="folder of the new one")],
) -> None:
    """Make the next authority where the key of the present one lies.

    `rollover --certificate` takes its ca.crt to the sites.
    """
    made = succeed(ca, out)
    write(f"new authority made, it ends on {made.not_valid_after_utc:%Y-%m-%d}\n")
    write(f"next: kohort-server rollover --certificate {out / 'ca.crt'}\n")


def renew(
    state: StateFolder,
    certificate: Annotated[
        Path | None, typer.Option(help="what `certify` made of the server's request")
    ] = None,
) -> None:
    """Renew the server's certificate.

    Where the authority's key is elsewhere it writes a request, and takes what `certify` made of it.
    """
    place = ServerState(state)
    check_set_up(place)
    config = load_config(place.config)
    if certificate is not None:
        _take(place, certificate, config.host)
        return
    here = (place.authority / AUTHORITY_KEY).exists()
    if here:
        files = issue_for_server(place, config)
        _say(place, read_certificate(files.certificate).not_valid_after_utc)
    if not here or not has_key(place):
        request = write_request(place.tls, [config.host], server_secret(config))
        write(f"written {request}\n")
        write(f"next: kohort-server certify {request.name} --ca FOLDER --out server.crt\n")
        write("then: kohort-server renew --certificate server.crt\n")


def _take(place: ServerState, certificate: Path, host: str) -> None:
    """Use what `certify` made; of the authority that comes, keep it until every site knows that."""
    made = read_certificate(certificate)
    present, root = read_authorities(place)[0], issuer_of(place, made)
    if root == present:
        ends = import_certificate(place.tls, root, certificate, host)
        note_server_certificate(place)
        _say(place, ends)
        return
    ends = keep_certificate(place.tls, root, certificate, host)
    write(f"kept for the new authority, it ends on {ends:%Y-%m-%d}\n")
    write("next: kohort-server rollover --finish, once every site has come with a new one\n")


def issue_for_server(place: ServerState, config: ServerConfig) -> ServerFiles:
    """Make the server's certificate with the authority that lies here, and note it in the log."""
    authority = load_authority(place.authority)
    secret = server_secret(config)
    files = issue_server_certificate(authority, place.tls, [config.host], secret=secret)
    note_server_certificate(place)
    return files


def note_server_certificate(place: ServerState) -> None:
    """Note the server's certificate in the log, once."""
    with place.open_log() as log:
        log.note_issued("server", read_certificate(server_files(place.tls).certificate))


def _say(place: ServerState, ends: datetime) -> None:
    """The last line of a renewal; the authority that comes is trusted beside the old."""
    write_trust(place)
    write(f"the server's certificate ends on {ends:%Y-%m-%d}; {NEXT_START}")


def server_secret(config: ServerConfig) -> bytes | None:
    """The passphrase for the server's key; nginx reads that key itself and knows none."""
    return None if config.listen.front == "nginx" else passphrase.current()


def protect(
    state: StateFolder,
    new_passphrase_fd: Annotated[
        int, typer.Option(min=0, help="descriptor of the new passphrase, one line")
    ],
    ca: Annotated[
        Path | None, typer.Option(help="the authority's folder, where it is not in the state")
    ] = None,
) -> None:
    """Protect the operator's, the authority's and the server's key by a passphrase.

    Keys that have one need it: `kohort-server --passphrase-fd OLD protect ...`.
    """
    place = ServerState(state)
    check_set_up(place)
    secret = passphrase.read_descriptor(new_passphrase_fd)
    found: list[tuple[Path, keys.Key]] = []
    # (1) every key is read before one is written
    found.append((place.operator_key, signing.load_private(place.operator_key)))
    paths = [(ca or place.authority) / AUTHORITY_KEY]
    if load_config(place.config).listen.front != "nginx":
        paths.append(place.tls / "server.key")
    found += [(path, read_key(path)) for path in paths if path.is_file()]
    if ca is not None and not paths[0].is_file():
        raise ConfigurationError(f"{paths[0]}: no such file", hint="--ca names its folder")
    # (2) write them
    for path, key in found:
        atomic_write(path, keys.to_pem(key, secret), mode=0o600)
        kind = "signing key" if isinstance(key, Ed25519PrivateKey) else "key"
        write(f"protected {kind} {path}\n")
