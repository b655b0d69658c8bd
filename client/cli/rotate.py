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
from common.wire import keys

Which = Annotated[str, typer.Argument(metavar="node", help="the key that connects")]


def rotate(state: StateFolder, which: Which) -> None:
    """Make a new key; the daemon gets its certificate and lets it take over between two messages.

    The old key signs for the new one, and counts at the server until the new one was used.
    """
    config = load_site(state)
    place = State(state)
    read_membership(place.membership)
    if which != "node":
        raise ConfigurationError(
            f"rotate {which}: unknown; expected node", hint="kohort-site rotate --help"
        )
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
