"""The operator's key over time: the next one is made, stated, and takes over.

In: the state folder. Out: a hand-over for the sites; every key that signed plans of this folder.
Guarantees: killed anywhere, the same command goes on; what the old key signed stays verifiable.
"""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common import passphrase
from common.errors import ConfigurationError, PolicyError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import keys, signing
from common.wire.handover import CAP_BYTES, Handover, open_handover, write_handover
from common.wire.messages import canonical
from server.operator.opening import load_operator_key, load_operator_public
from server.operator.state import ServerState

FILE = "handovers.json"
MOST = 32


def operator_keys(state: ServerState) -> tuple[Ed25519PublicKey, ...]:
    """Return every key that signed here, newest first."""
    found = [load_operator_public(state)]
    for one in reversed(read_handovers(state)):
        if signing.public_text(found[-1]) == one.new:
            found.append(signing.parse_public(one.old))
    return tuple(found)


def begin(state: ServerState, name: str) -> bytes:
    """Make the operator's next key, or take the one that waits; return the hand-over for sites."""
    old = load_operator_key(state)
    if not state.next_operator_key.is_file():
        new = signing.new_key()
        secret = passphrase.current() if _is_protected(state) else None
        if secret is None:
            signing.save_private(state.next_operator_key, new)
        else:
            atomic_write(state.next_operator_key, keys.to_pem(new, secret), mode=0o600)
    return write_handover("operator", name, old, signing.load_private(state.next_operator_key))


def finish(state: ServerState, name: str) -> Ed25519PrivateKey:
    """Let the next key take over; return it. Raises PolicyError where none was made."""
    if state.next_operator_key.is_file():
        text = begin(state, name)
        taken = [one for one in read_handovers(state) if one.new != _parsed(text).new]
        rows = [*taken, _parsed(text)][-MOST:]
        fields = {"handovers": [canonical(one.model_dump(mode="json")).decode() for one in rows]}
        with state.open_log() as log:
            log.note("key-changed", once=True, old=rows[-1].old, new=rows[-1].new)
        # what proves the new key first, then the key
        atomic_write(state.operator_key.with_name(FILE), canonical(fields), mode=0o600)
        state.next_operator_key.replace(state.operator_key)
    key = load_operator_key(state)
    line = signing.public_text(key.public_key(), name) + "\n"
    public = state.operator_key.with_suffix(".pub")
    if load_operator_public(state) == key.public_key() and not read_handovers(state):
        raise PolicyError(
            "the operator's next key was not made", hint="kohort-server rotate operator makes it"
        )
    atomic_write(public, line.encode())
    return key


def read_handovers(state: ServerState) -> list[Handover]:
    """Return what earlier keys stated, oldest first."""
    path = state.operator_key.with_name(FILE)
    if not path.is_file():
        return []
    damage = ConfigurationError(
        f"{path}: not the hand-overs that were written", hint="put back the copy of this file"
    )
    with damage_named(damage):
        texts = json.loads(read_capped(path, MOST * 2 * CAP_BYTES))["handovers"]
        rows = [str(one).encode() for one in texts]
    return [_parsed(one) for one in rows]


def _parsed(text: bytes) -> Handover:
    """One statement."""
    return open_handover(text, "operator")


def _is_protected(state: ServerState) -> bool:
    """Whether the present key has a passphrase."""
    text = read_capped(state.operator_key, signing.KEY_CAP_BYTES)
    return text.lstrip().startswith(keys.PROTECTED)
