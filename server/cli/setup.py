"""`init`, `front`: a new operator's state folder, and nginx before it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import passphrase
from common.errors import ConfigurationError, disk_faults_named
from common.storage.files import atomic_write
from common.wire import keys, signing
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import check_set_up
from server.cli.terminal import write
from server.front.nginx import config_path, nginx_conf, start_command
from server.operator.certificates import (
    Authority,
    create_authority,
    issue_server_certificate,
    load_authority,
    to_pem,
)
from server.operator.config import check_config, load_config, new_config
from server.operator.folder import keep_folder_private
from server.operator.state import ServerState

Name = Annotated[str, typer.Option(help="name of the consortium: letters, digits, hyphens")]
Url = Annotated[str, typer.Option(help="the address that sites connect to: https://HOST:PORT")]
Ca = Annotated[
    Path | None, typer.Option(help="another folder for the authority: a disk that you take away")
]


def init(state: StateFolder, name: Name, url: Url, ca: Ca = None) -> None:
    """Set up a new operator's state folder.

    Makes server.yaml, the certificate authority, the server's certificate and the signing key.
    Nothing that exists is replaced: one that was cut short goes on with the keys that it made.
    With --ca the authority's key is not in the state folder.
    """
    place = ServerState(state)
    if place.config.exists():
        raise ConfigurationError(
            f"{state}: a server is set up here already", hint="give another folder with --state"
        )
    config = check_config(name, url)
    check_folder("--state", state)
    if ca is not None:
        check_folder("--ca", ca)
    make_root(place.root)
    # The certificate authority, the server's certificate, the key that signs plans.
    authority = _make_authority(place, name, ca)
    issue_server_certificate(authority, place.tls, [config.host], secret=passphrase.current())
    key = _make_operator_key(place)
    public = signing.public_text(key.public_key(), name) + "\n"
    atomic_write(place.operator_key.with_suffix(".pub"), public.encode())
    # Last, so that a folder with server.yaml is complete.
    new_config(name, url, place.config)
    write(f"server {name} set up in {state}\n")
    write(f"operator key: {signing.fingerprint(key.public_key())}\n")
    write(f"next: kohort-server sign STUDY.yaml --state {state} --out BUNDLE\n")


def _make_authority(place: ServerState, name: str, ca: Path | None) -> Authority:
    """The certificate authority: a new one, or that of an init which was cut short."""
    if (place.authority / "ca.crt").exists():
        return load_authority(ca or place.authority)
    if ca is None:
        # a key without certificate has signed nothing
        (place.authority / "ca.key").unlink(missing_ok=True)
        return create_authority(place.authority, name)
    authority = create_authority(ca, name)
    atomic_write(place.authority / "ca.crt", to_pem(authority.certificate))
    return authority


def _make_operator_key(place: ServerState) -> Ed25519PrivateKey:
    """The key that signs plans: a new one, or that of an init which was cut short."""
    if not place.operator_key.exists():
        signing.save_private(place.operator_key, signing.new_key())
    key = signing.load_private(place.operator_key)
    secret = passphrase.current()
    if secret is not None:
        atomic_write(place.operator_key, keys.to_pem(key, secret), mode=0o600)
    return key


def make_root(root: Path) -> None:
    """Make the state folder, which only its owner enters."""
    with disk_faults_named("create", root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_folder_private(root)


def front(state: StateFolder) -> None:
    """Write the configuration of nginx, for `listen.front: nginx` in server.yaml.

    nginx then runs as this user, beside `kohort-server run`.
    """
    place = ServerState(state)
    check_set_up(place)
    config = load_config(place.config)
    path = config_path(place)
    with disk_faults_named("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(path, nginx_conf(place, config).encode())
    write(f"written {path}\n")
    if config.listen.front != "nginx":
        write("server.yaml: listen.front is embedded: set it to nginx before you start both\n")
    write(f"next: {start_command(path)}\n")
