"""Opens what lies in the operator's state folder: its keys and its registry of sites.

In: a state folder. Out: keys, the registry; ConfigurationError where no server is set up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from common.errors import ConfigurationError
from common.storage.files import read_capped
from common.wire import signing
from server.operator.folder import keep_folder_private
from server.operator.sites import Registry
from server.operator.state import ServerState


def check_set_up(state: ServerState) -> None:
    """Raise ConfigurationError where no server is set up, or the folder is another account's."""
    if not state.operator_key.is_file():
        raise ConfigurationError(
            f"{state.root}: no server is set up here",
            hint="`kohort-server init` sets one up; --state names its folder",
        )
    keep_folder_private(state.root)


def load_operator_key(state: ServerState) -> Ed25519PrivateKey:
    """Return the operator's signing key; raises ConfigurationError where no server is set up."""
    check_set_up(state)
    return signing.load_private(state.operator_key)


def load_operator_public(state: ServerState) -> Ed25519PublicKey:
    """Return the operator's public key, for commands that sign nothing."""
    check_set_up(state)
    path = state.operator_key.with_suffix(".pub")
    if not path.is_file():
        return signing.load_private(state.operator_key).public_key()
    text = read_capped(path, signing.KEY_CAP_BYTES)
    return signing.parse_public(text.decode(errors="replace"))


@contextmanager
def open_registry(state: ServerState) -> Iterator[Registry]:
    """Yield the sites' registry of a state folder that is set up."""
    check_set_up(state)
    registry = Registry(state.sites)
    try:
        yield registry
    finally:
        registry.close()
