"""One head over everything that was spent or frozen, and the operator's receipts for heads.

In: the state folder; commitments in the operator's signed instructions.
Out: a commitment for a message that leaves, or PolicyError (E-ROLLBACK).
Guarantees:
1. A head is on disk before anything that names it is signed.
2. The state may be newer than a head, as after a crash. It is never older than any head: a part
   with fewer entries, or with other ones, is refused.
3. A receipt is for a head of this site, over all studies; otherwise nothing is spent.
4. What was signed is still in the outbox; what lies here is named by the journal (leftovers.py).
5. A commitment hides: HMAC-SHA-256 under a site secret, over the head and a fresh nonce. It tells
   neither a count nor whether two heads are equal.
Not covered: a restore of the whole folder, receipts included, that meets no operator
(THREAT_MODEL.md).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from client.state.chains import Chains, chains
from client.state.folder import State, message_file
from client.state.leftovers import find_unnamed
from common.errors import PolicyError
from common.storage.journal import Journal
from common.wire.messages import canonical

NONCE_BYTES = 16
LEFT = ("answered", "exported")  # states of the journal: something may have left
AFTER_LOSS = "make a new site that begins as spent, `kohort-site init --after-loss EPSILON`"
FIX = f"put the newest copy of the whole state folder back; if there is none: {AFTER_LOSS}"


class Heads:
    """The heads that this site took, and the receipts that it got; both files only grow."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._heads = Journal(state.heads)
        self._receipts = Journal(state.receipts)

    def take(self, key: str) -> str:
        """Write down a head over the present state for what `key` names; return its commitment.

        A second call for one key returns the first commitment.
        """
        taken = self._heads.latest(key)
        if taken is not None:
            return str(taken.data["commitment"])
        record: dict[str, Any] = {
            "head": head_of(chains(self._state)),
            "nonce": secrets.token_hex(NONCE_BYTES),
        }
        # the key stands in it too, so that a head is for one message
        text = canonical({"key": key, **record})
        secret = hmac.digest(self._state.pseudonym_bytes(), b"kohort-head-key", "sha256")
        commitment = hmac.digest(secret, text, "sha256").hex()
        self._heads.append(key, "head", record | {"commitment": commitment})
        return commitment

    def any(self) -> bool:
        """Return whether a head was ever taken here."""
        return bool(self._heads.entries())

    def receive(self, commitments: Iterable[str]) -> None:
        """Note the operator's receipts for good; `check` refuses one for an unknown head."""
        known = {entry.key for entry in self._receipts.entries()}
        for commitment in commitments:
            if commitment not in known:
                self._receipts.append(commitment, "receipt")

    def countersigned(self, part: str) -> int:
        """Return how many entries of a part the operator has a receipt for."""
        receipts = {entry.key for entry in self._receipts.entries()}
        count = 0
        for entry in self._heads.entries():
            if entry.data["commitment"] in receipts:
                count = max(count, int(entry.data["head"].get(part, (0, ""))[0]))
        return count

    def check(self) -> None:
        """Raise PolicyError (E-ROLLBACK) unless the state is as new as everything that it sent."""
        # heads first: a daemon that works meanwhile only makes the state newer
        taken = self._heads.entries()
        present = chains(self._state)
        # every head ever taken is a prefix of the present state
        for entry in taken:
            fault = behind(entry.data["head"], present)
            if fault:
                raise rollback(f"{fault} is older than what this site signed")
        self._check_receipts()
        self._check_outbox()
        unnamed = find_unnamed(self._state)
        if unnamed:
            raise rollback(f"the journal does not name {unnamed} that is here")

    def _check_receipts(self) -> None:
        """Every receipt is for a head that was taken here."""
        receipts = {entry.key for entry in self._receipts.entries()}
        taken = {entry.data["commitment"] for entry in self._heads.entries()}
        if receipts - taken:
            raise rollback("the operator has a receipt for a state that this folder never had")

    def _check_outbox(self) -> None:
        """What was answered or exported has its head; what was answered is in the outbox."""
        journaled = self._state.journal.entries()
        taken = {entry.key for entry in self._heads.entries()}
        for entry in journaled:
            if entry.state in LEFT and entry.key not in taken:
                raise rollback("the list of heads is older than the journal")
            place = entry.key.rpartition("/")[0]
            for part in range(len(entry.data.get("sealed", ()))):
                if not message_file(self._state.outbox, f"{place}/{part}").is_file():
                    raise rollback("the outbox lacks a message that this site signed")


def head_of(present: Chains) -> dict[str, list[Any]]:
    """Return, for each part of the state, how many entries it has and the digest over them."""
    head: dict[str, list[Any]] = {}
    for name, digests in present.items():
        head[name] = [len(digests), digests[-1] if digests else ""]
    return head


def behind(head: Mapping[str, list[Any]], present: Chains) -> str:
    """Return the first part of the state that does not extend a head, or ""."""
    for name, (count, digest) in head.items():
        digests = present.get(name, [])
        if count and (len(digests) < count or digests[count - 1] != digest):
            return name.partition("/")[0]
    return ""


def rollback(what: str) -> PolicyError:
    """Return the refusal of a state folder that is older than what left."""
    return PolicyError(f"state folder: {what}; nothing is spent", hint=FIX, code="E-ROLLBACK")
