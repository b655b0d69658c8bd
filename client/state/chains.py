"""What this site spent, froze and decided, as chains of digests: one chain a part of the state.

In: the files of a state folder. Out: for each part, a digest after each of its entries.
Guarantees: an entry's digest covers every entry before it; reading changes nothing, and a file that
is not there has no entries.
Not covered: what a chain is compared with (client/state/head.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from client.state.canaries import history as canary_history
from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.ledger_file import transaction
from client.state.people import PeopleFile
from common.wire.messages import canonical

Chains = dict[str, list[str]]
Source = Callable[[State], dict[str, list[bytes]]]


def chains(state: State) -> Chains:
    """Return the chain of every part of the state, by name."""
    found: Chains = {}
    for source in SOURCES:
        for name, entries in source(state).items():
            found[name] = chain(entries)
    return found


def chain(entries: Iterable[bytes]) -> list[str]:
    """Return the digest after each entry; each covers all entries before it."""
    digests: list[str] = []
    digest = b""
    for entry in entries:
        digest = hashlib.sha256(
            b"kohort-chain\0" + digest + hashlib.sha256(entry).digest()
        ).digest()
        digests.append(digest.hex())
    return digests


def _ledger(state: State) -> dict[str, list[bytes]]:
    """Every entry of the ledger, by its own hash."""
    if not state.ledger.is_file():
        return {"ledger": []}
    with transaction(state.ledger) as (_, entries):
        return {"ledger": [entry.hash.encode() for entry in entries]}


def _journal(state: State) -> dict[str, list[bytes]]:
    """Every entry of the journal: plans, reservations, and the digests of what was signed."""
    rows: list[bytes] = []
    for entry in state.journal.entries():
        rows.append(canonical([entry.seq, entry.key, entry.state, entry.data]))
    return {"journal": rows}


def _groups(state: State) -> dict[str, list[bytes]]:
    """Every frozen group with its members, and every image of one, in the order of writing."""
    if not state.groups.is_file():
        return {"groups": [], "artefacts": []}
    with GroupStore(state.groups) as store:
        return store.history()


def _canaries(state: State) -> dict[str, list[bytes]]:
    """Every canary file: the coins, then each round that it counts."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(state.canaries.glob("*.safetensors")):
        found[f"canaries/{path.stem}"] = canary_history(path)
    return found


def _people(state: State) -> dict[str, list[bytes]]:
    """Every link between names, and every withdrawal."""
    return {"people": PeopleFile(state.people).history()}


def _log(state: State) -> dict[str, list[bytes]]:
    """Every entry of the audit log, by its own digest."""
    return {"log": [entry.digest.encode() for entry in state.log.entries()]}


# a new part of the state is added here; its entries must only ever be appended
SOURCES: tuple[Source, ...] = (_ledger, _journal, _groups, _canaries, _people, _log)
