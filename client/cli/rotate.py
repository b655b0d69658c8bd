"""`rotate`: new keys for this site, which take over from the old ones by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.terminal import write_line
from client.fleet.connection import KEY_CAP_BYTES, create_node_key, read_node_key
from client.state.config import load_site
from client.state.folder import State
from client.state.membership import read_membership
from common import passphrase
from common.errors import ConfigurationError, PolicyError
from common.storage.files import atomic_write, read_capped
from common.wire import keys, signing

Which = Annotated[
    str, typer.Argument(metavar="node|signing", help="the key that connects, or the one that signs")
]


def rotate(state: StateFolder, which: Which) -> None:
    """Make a new key; the daemon brings it to the server, and it takes over between two messages.

    The old key signs for the new one. What it signed before stays verifiable.
    """
    config = load_site(state)
    place = State(state)
    read_membership(place.membership)
    if which not in ("node", "signing"):
        raise ConfigurationError(
            f"rotate {which}: unknown; expected node or signing", hint="kohort-site rotate --help"
        )
    if which == "signing":
        _make_signing_key(place)
        return
    if place.next_node_key.exists() or place.next_certificate.exists():
        raise PolicyError(
            f"{place.next_node_key}: a new node key is already on its way",
            hint="kohort-site run brings it to the server; its log says when it counts",
        )
    read_node_key(place.node_key)
    create_node_key(place.next_node_key, place.next_node_key.with_suffix(".pub"), config.site)
    if read_capped(place.node_key, KEY_CAP_BYTES).lstrip().startswith(keys.PROTECTED):
        protected = keys.to_pem(read_node_key(place.next_node_key), passphrase.current())
        atomic_write(place.next_node_key, protected, mode=0o600)
    write_line("new node key made; next: kohort-site run, which takes it to the server")


def _make_signing_key(place: State) -> None:
    """Write the next signing key, protected as the present one is."""
    if place.next_sign_key.exists() or place.next_sign_known.exists():
        raise PolicyError(
            f"{place.next_sign_key}: a new signing key is already on its way",
            hint="kohort-site run brings it to the server; its log says when it counts",
        )
    old = place.signing_key()
    new = signing.new_key()
    signing.save_private(place.next_sign_key, new)
    if read_capped(place.sign_key, KEY_CAP_BYTES).lstrip().startswith(keys.PROTECTED):
        atomic_write(place.next_sign_key, keys.to_pem(new, passphrase.current()), mode=0o600)
    write_line(f"the signing key is   {signing.fingerprint(old.public_key())}")
    write_line(f"the next one will be {signing.fingerprint(new.public_key())}")
    write_line("next: kohort-site run, which takes it to the server")
