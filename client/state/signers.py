"""The keys that signed for this site before its present one.

In: the state folder. Out: public keys.
Guarantees: an earlier key counts only through a statement that it and the next key both signed,
and so on up to the present key. Who can write to the folder, but holds no key, adds none.
Not covered: a key that was stolen; such a site is revoked.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from client.state.folder import State
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from common.wire.handover import open_handover, write_handover

HANDOVERS_CAP_BYTES = 1 << 18


def keep_handover(state: State, site: str, new: Ed25519PrivateKey) -> None:
    """Keep the statement that `new` takes over from the present key; once is enough."""
    old = state.signing_key()
    if signing.public_text(new.public_key()) in _statements(state):
        return
    statement = write_handover("site", site, old, new)
    kept = b""
    if state.handovers.is_file():
        kept = read_capped(state.handovers, HANDOVERS_CAP_BYTES)
    atomic_write(state.handovers, kept + statement + b"\n", mode=0o600)


def signing_keys(state: State) -> tuple[Ed25519PublicKey, ...]:
    """Return this site's signing key and those before it, the newest first.

    Raises RefusedError (E-HANDOVER) for a kept statement that is not as it was written.
    """
    present = state.signing_key().public_key()
    found = [present]
    statements = _statements(state)
    line = signing.public_text(present)
    # each statement is used once, so a circle ends
    while line in statements:
        line = statements.pop(line)
        found.append(signing.parse_public(line))
    return tuple(found)


def _statements(state: State) -> dict[str, str]:
    """Which key each kept key took over from."""
    if not state.handovers.is_file():
        return {}
    found = {}
    for text in read_capped(state.handovers, HANDOVERS_CAP_BYTES).splitlines():
        statement = open_handover(text, "site")
        found[statement.new] = statement.old
    return found
