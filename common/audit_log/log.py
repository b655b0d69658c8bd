"""A side's log on disk: append-only, chained, its heads signed.

In: an event and its facts, before the deed that it tells of. Out: `Event`s.
Guarantees: an entry is on disk when `note` returns; several processes may write.
Not covered: a deed that a crash prevented after it was noted; the one that follows tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.audit_log.entries import Broken, Event, SignedHead, find_break, follow, sign_head
from common.audit_log.events import EVENTS
from common.errors import Bug, KohortError, RefusedError, damage_named
from common.storage.journal import Entry, Journal

FILE = "log.sqlite"
HEADS_FILE = "log-heads.sqlite"
FACT_CHARACTERS = 300
NOTED = "noted"
SIGNED = "signed"
TIME = "%Y-%m-%dT%H:%M:%SZ"
SigningKey = Callable[[], Ed25519PrivateKey]
Fact = str | int | float
FACT_TYPES = (str, int, float)


class _Noted(Exception):
    """The event stands already."""


class AuditLog:
    """The log in one state folder. `key`: this side's signing key, None where it is elsewhere."""

    def __init__(self, folder: Path, key: SigningKey | None = None) -> None:
        self.path = folder / FILE
        self._heads_path = folder / HEADS_FILE
        self._key = key
        self._journal: Journal | None = None
        self._heads: Journal | None = None
        self._newest: Event | None = None
        self._signed: SignedHead | None = None

    def note(self, event: str, *, once: bool = False, **facts: Fact) -> None:
        """Write one event, and sign the head over it where the key is at hand.

        With `once`, the same event with the same facts stands once.
        """
        if set(EVENTS.get(event, ())) != set(facts):
            raise Bug(f"log: {event} with {sorted(facts)}: not in the list of events")
        clean = {name: _fact(value) for name, value in facts.items()}

        def make(before: Sequence[Entry]) -> Mapping[str, Any]:
            known = [_event(entry) for entry in before]
            if once and any((one.event, one.facts) == (event, clean) for one in known):
                raise _Noted
            time = datetime.now(UTC).strftime(TIME)
            return _row(follow(known, event, time, clean))

        try:
            self._open().append_after(event, NOTED, make)
        except _Noted:
            return
        self.sign()

    def sign(self, key: Ed25519PrivateKey | None = None) -> SignedHead | None:
        """Sign the head over the newest entry, once; None without an entry or a key at hand."""
        newest = self.newest()
        if newest is None:
            return None
        if self._signed is None or self._signed.digest != newest.digest:
            heads = [head for head in self.heads() if head.digest == newest.digest]
            self._signed = heads[-1] if heads else self._sign_new(newest, key)
        return self._signed

    def _sign_new(self, newest: Event, key: Ed25519PrivateKey | None) -> SignedHead | None:
        """A new head, written down; None without a key."""
        try:
            key = key or (self._key() if self._key is not None else None)
        except KohortError:
            # it has a passphrase that nobody gave: the next head covers this entry
            return None
        if key is None:
            return None
        head = sign_head(newest, key)
        data = {"seq": head.seq, "signature": head.signature}
        self._open_heads().append(head.digest, SIGNED, data)
        return head

    def newest(self) -> Event | None:
        """Return the newest entry, or None; takes time for those that are new to this process."""
        if not self.path.is_file():
            return None
        after = self._newest.seq if self._newest else 0
        for entry in self._open().entries(after=after):
            self._newest = _event(entry)
        return self._newest

    def entries(self) -> list[Event]:
        """Return every entry, as it stands in the file; `verify` says whether it is whole."""
        if not self.path.is_file():
            return []
        return [_event(entry) for entry in self._open().entries()]

    def heads(self) -> list[SignedHead]:
        """Return every head that was signed here, the oldest first."""
        if not self._heads_path.is_file():
            return []
        return [_head(entry) for entry in self._open_heads().entries()]

    @property
    def head(self) -> str:
        """The digest over everything so far; "" for an empty log."""
        newest = self.newest()
        return newest.digest if newest else ""

    def verify(self, keys: Sequence[Ed25519PublicKey]) -> int:
        """Return how many entries there are; raises RefusedError (E-LOG) for the first broken one.

        `keys`: this side's public keys, the present one and those before it.
        """
        # the heads first: another process may write meanwhile
        heads = self.heads()
        entries = self.entries()
        broken = find_break(entries, heads, keys)
        if broken is not None:
            raise broken.refusal()
        return len(entries)

    def check(self, keys: Sequence[Ed25519PublicKey]) -> None:
        """Raise RefusedError (E-LOG) unless the chain holds, up to the newest signed head.

        For a start: it checks one signature, however long the log is.
        """
        newest = sorted(self.heads(), key=lambda head: head.seq)[-1:]
        broken = find_break(self.entries(), newest, keys)
        if broken is not None:
            raise broken.refusal()

    def close(self) -> None:
        """Close the files; the next call opens them again."""
        for journal in (self._journal, self._heads):
            if journal is not None:
                journal.close()
        self._journal = self._heads = None
        self._newest = self._signed = None

    def _open(self) -> Journal:
        """The file of the entries, made with the first of them."""
        if self._journal is None:
            self._journal = Journal(self.path)
        return self._journal

    def _open_heads(self) -> Journal:
        """The file of the heads."""
        if self._heads is None:
            self._heads = Journal(self._heads_path)
        return self._heads


def _fact(value: Fact) -> Fact:
    """A fact as it is kept: text without what a terminal would obey, of bounded length."""
    if isinstance(value, str):
        plain = "".join(letter if letter.isprintable() else "?" for letter in value)
        return plain[:FACT_CHARACTERS]
    return value


def _row(event: Event) -> dict[str, Any]:
    """An entry as the journal keeps it; its number is the row's own."""
    return {
        "time": event.time,
        "facts": event.facts,
        "previous": event.previous,
        "digest": event.digest,
    }


def _event(entry: Entry) -> Event:
    """The entry in a row; raises RefusedError (E-LOG) for anything but `_row`'s."""
    damage = Broken(entry.seq, "it is not what was written").refusal()
    with damage_named(damage):
        data = entry.data
        texts = [data[name] for name in ("time", "previous", "digest")]
        facts = data["facts"]
        if len(data) != 4 or not all(type(text) is str for text in texts):
            raise ValueError("fields")
        if type(facts) is not dict or not all(type(one) in FACT_TYPES for one in facts.values()):
            raise ValueError("facts")
        return Event(entry.seq, entry.key, texts[0], facts, texts[1], texts[2])


def _head(entry: Entry) -> SignedHead:
    """The head in a row."""
    with damage_named(RefusedError("log: a head is not what was written", code="E-LOG")):
        seq, signature = entry.data["seq"], entry.data["signature"]
        if type(seq) is not int or type(signature) is not str:
            raise ValueError("types")
        return SignedHead(seq, entry.key, signature)
