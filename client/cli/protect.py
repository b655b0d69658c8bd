"""`protect`: the site's keys under a passphrase."""

from __future__ import annotations

from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.terminal import write_line
from client.fleet.connection import read_node_key
from client.state.config import load_site
from client.state.folder import State
from common import passphrase
from common.storage.files import atomic_write
from common.wire import keys, signing


def protect(
    state: StateFolder,
    new_passphrase_fd: Annotated[
        int, typer.Option(min=0, help="descriptor of the new passphrase, one line")
    ],
) -> None:
    """Protect the key that signs and the key that connects by a passphrase.

    Keys that have one need it: `kohort-site --passphrase-fd OLD protect ...`.
    """
    load_site(state)
    place = State(state)
    secret = passphrase.read_descriptor(new_passphrase_fd)
    # both are read before one is written
    signer = signing.load_private(place.sign_key)
    node = read_node_key(place.node_key)
    for path, key in ((place.sign_key, signer), (place.node_key, node)):
        atomic_write(path, keys.to_pem(key, secret), mode=0o600)
        write_line(f"protected {path}")
