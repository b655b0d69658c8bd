"""The chain of a log and its signed heads: rules without a disk.

In: entries and heads as they were read. Out: the digest of an entry; the first one that is broken.
An entry holds the digest of the one before it, so a digest covers everything up to it. A head is a
digest with its number, signed by the side's own key.
Guarantees: an entry that was changed, left out, moved or added, a log that ends too early and one
that was written anew after a head are found, and the first entry that is not as it was is named.
Not covered: entries after the last head that were taken away together; the other side knows of
those heads that it countersigned (client/state/head.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import RefusedError
from common.wire import signing
from common.wire.messages import canonical

GENESIS = "0" * 64
FORMAT = "kohort-log/1"


@dataclass(frozen=True)
class Event:
    """One entry: its number from 1, what happened, when (UTC), and the digest over all so far."""

    seq: int
    event: str
    time: str
    facts: dict[str, Any]
    previous: str
    digest: str

    def line(self) -> str:
        """Return the entry as a line for a person."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.seq:>6}  {self.time}  {self.event:<18}  {facts}"


@dataclass(frozen=True)
class SignedHead:
    """The digest of an entry, signed: whoever knows it knows everything up to that entry."""

    seq: int
    digest: str
    signature: str


@dataclass(frozen=True)
class Broken:
    """The first entry that is not as it was written, and how that shows."""

    seq: int
    how: str

    def refusal(self) -> RefusedError:
        """Return the error that names it."""
        return RefusedError(
            f"log: entry {self.seq}: {self.how}",
            hint="put the newest copy of the whole state folder back; if there is none, keep this "
            "file and tell the other side",
            code="E-LOG",
        )


def follow(before: Sequence[Event], event: str, time: str, facts: dict[str, Any]) -> Event:
    """Return the entry that comes after the others."""
    previous = before[-1].digest if before else GENESIS
    seq = len(before) + 1
    return Event(seq, event, time, facts, previous, digest_of(seq, event, time, facts, previous))


def digest_of(seq: int, event: str, time: str, facts: dict[str, Any], previous: str) -> str:
    """Return the SHA-256, in hex, over an entry and the digest of the one before it."""
    row = canonical([FORMAT, seq, event, time, facts, previous])
    return hashlib.sha256(row).hexdigest()


def sign_head(entry: Event, key: Ed25519PrivateKey) -> SignedHead:
    """Return the signed head over everything up to an entry."""
    signature = signing.sign(key, signing.LOG, _head_bytes(entry.seq, entry.digest))
    return SignedHead(entry.seq, entry.digest, signature.decode())


def is_signed(head: SignedHead, keys: Sequence[Ed25519PublicKey]) -> bool:
    """Return whether one of these keys signed a head: a side's key may have been changed."""
    data = _head_bytes(head.seq, head.digest)
    for key in keys:
        try:
            signing.verify(key, signing.LOG, data, head.signature.encode(), what="log")
        except RefusedError:
            continue
        return True
    return False


def find_break(
    entries: Sequence[Event], heads: Sequence[SignedHead], keys: Sequence[Ed25519PublicKey]
) -> Broken | None:
    """Return the first entry that is not as it was written, or None.

    `keys`: the side's own public keys, the present one and those before it.
    """
    broken = find_broken_link(entries)
    if broken is not None:
        return broken
    last = 0  # up to here a head agrees
    for head in sorted(heads, key=lambda head: head.seq):
        if not is_signed(head, keys):
            how = f"the head of {head.seq}, which covers it, is not signed by this side's key"
            return Broken(last + 1, how)
        if head.seq > len(entries):
            return Broken(len(entries) + 1, f"missing; a head of entry {head.seq} was signed")
        if entries[head.seq - 1].digest != head.digest:
            return Broken(last + 1, f"this or a later one up to {head.seq} was another when signed")
        last = head.seq
    return None


def find_broken_link(entries: Sequence[Event]) -> Broken | None:
    """Return the first entry that does not follow from those before it."""
    previous = GENESIS
    for number, entry in enumerate(entries, 1):
        if entry.seq != number:
            return Broken(number, f"missing; entry {entry.seq} stands in its place")
        if entry.previous != previous:
            return Broken(number, "it does not follow from the entries before it")
        facts = (entry.seq, entry.event, entry.time, entry.facts, entry.previous)
        if digest_of(*facts) != entry.digest:
            return Broken(number, "it is not what was written")
        previous = entry.digest
    return None


def _head_bytes(seq: int, digest: str) -> bytes:
    """What the signature of a head covers."""
    return canonical({"format": FORMAT, "seq": seq, "digest": digest})
