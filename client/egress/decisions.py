"""Decisions on image batches as records: chained, and signed by the site.

In: what a person decided on which bytes, the journal's entries, the site's signing key.
Out: the fields of a record; `Decision`s; PolicyError (E-REVIEW-CHAIN) for a record that is not as
it was written.
Guarantees:
  1. a record holds the SHA-256 over all records before it
  2. a decision is signed by the site over batch, kind, person, reason, images, pages, time and (1)
Not covered: records that are missing at the end; whether the person is who they say (the accounts
of the operating system decide); records of versions that signed none: they count as unsigned.
"""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigurationError, PolicyError, RefusedError, damage_named
from common.storage.journal import Entry
from common.wire import signing
from common.wire.messages import canonical

FORMAT = "kohort-review/1"
# the journal's word for each kind of decision
APPROVED = "approved"
REJECTED = "rejected"
REDUCED = "reduced"
DECISIONS = (APPROVED, REJECTED, REDUCED)
# why images stay, by code; a note in a person's own words may stand beside it
REASONS: Mapping[str, str] = {
    "person": "it looks like a person of the cohort",
    "text": "text or marks of a device are in it",
    "label": "it does not fit its label",
    "broken": "it is broken or of no use",
    "other": "another reason, in the note",
}
NAME_CHARACTERS = 80
NOTE_CHARACTERS = 500
PREVIOUS = "previous"
SIGNATURE = "signature"

Entries = Sequence[Entry]
SigningKey = Callable[[], Ed25519PrivateKey]


@dataclass(frozen=True)
class Choice:
    """What a person decided: kind, name, why, and which images stay (numbers from 1)."""

    kind: str
    reviewer: str
    reason: str = ""
    note: str = ""
    left_out: tuple[int, ...] = ()

    def checked(self) -> Choice:
        """Return it with plain spaces; raises ConfigurationError for what no record may hold."""
        reviewer = " ".join(self.reviewer.split())
        note = " ".join(self.note.split())
        if not reviewer:
            raise ConfigurationError(
                "review: a decision needs the reviewer's name", hint="add --reviewer NAME"
            )
        for what, text, most in (
            ("name", reviewer, NAME_CHARACTERS),
            ("note", note, NOTE_CHARACTERS),
        ):
            if len(text) > most or not text.isprintable():
                raise ConfigurationError(
                    f"review: the {what} has {len(text)} characters, expected at most {most}, all "
                    "of them printable",
                    hint=f"shorten the {what}",
                )
        if self.reason and self.reason not in REASONS:
            raise ConfigurationError(
                f"review: unknown reason {self.reason!r}; expected one of {', '.join(REASONS)}",
                hint="kohort-site review --help",
            )
        return Choice(self.kind, reviewer, self.reason, note, self.left_out)


@dataclass(frozen=True)
class Decision:
    """One person's decision on one batch, as the journal holds it. `signed`: it says so itself."""

    kind: str
    reviewer: str
    reason: str
    note: str
    left_out: tuple[int, ...]
    at: str
    signed: bool

    @classmethod
    def of(cls, entry: Entry) -> Decision:
        """Return the decision in an entry; its signature is not looked at."""
        data = entry.data
        with damage_named(_broken(entry, "its fields are not those of a decision")):
            return cls(
                entry.state,
                str(data.get("reviewer", "")),
                str(data.get("reason", "")),
                str(data.get("note", "")),
                tuple(int(number) for number in data.get("left_out", ())),
                str(data.get("at", "")),
                SIGNATURE in data,
            )


def who(reviewer: str) -> str:
    """Return the form of a name in which two spellings of it are one person."""
    return " ".join(unicodedata.normalize("NFKC", reviewer).casefold().split())


def chain(entries: Entries) -> str:
    """Return the SHA-256, in hex, over all these records in their order."""
    digest = "0" * 64
    for entry in entries:
        digest = _link(digest, entry)
    return digest


def record_waiting(fields: Mapping[str, Any], before: Entries) -> dict[str, Any]:
    """Return the fields of a record that no person decides: chained, not signed."""
    return {**fields, PREVIOUS: chain(before)}


def record_decision(
    batch: str,
    choice: Choice,
    pages: Sequence[Sequence[str]],
    before: Entries,
    key: Ed25519PrivateKey,
) -> dict[str, Any]:
    """Return the fields of a signed decision that follows the records `before`."""
    fields: dict[str, Any] = {
        "reviewer": choice.reviewer,
        "reason": choice.reason,
        "note": choice.note,
        "left_out": list(choice.left_out),
        "pages": [list(page) for page in pages],
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        PREVIOUS: chain(before),
    }
    signed = signing.sign(key, signing.REVIEW, _signed_bytes(batch, choice.kind, fields))
    return {**fields, SIGNATURE: signed.decode()}


def check_chain(entries: Entries) -> None:
    """Raise PolicyError (E-REVIEW-CHAIN) for the first record that does not follow those before it.

    Records from before records were chained may stand at the start alone.
    """
    digest = "0" * 64
    chained = False
    for entry in entries:
        known = entry.data.get(PREVIOUS)
        if known != digest and (chained or known is not None):
            raise _broken(entry, "it does not follow from the records before it")
        chained = chained or known is not None
        digest = _link(digest, entry)


def check_signature(entry: Entry, keys: Sequence[Ed25519PublicKey]) -> None:
    """Raise PolicyError (E-REVIEW-CHAIN) unless the site signed this decision on this batch.

    `keys`: the site's own, the present one and those that handed over to it.
    """
    fields = {name: value for name, value in entry.data.items() if name != SIGNATURE}
    data = _signed_bytes(entry.key, entry.state, fields)
    signature = str(entry.data.get(SIGNATURE, "")).encode()
    for key in keys:
        with contextlib.suppress(RefusedError):
            signing.verify(key, signing.REVIEW, data, signature, what="review")
            return
    raise _broken(entry, "this site did not sign it")


def _signed_bytes(batch: str, kind: str, fields: Mapping[str, Any]) -> bytes:
    """What the signature of a decision covers."""
    return canonical({"format": FORMAT, "batch": batch, "kind": kind, "fields": dict(fields)})


def _link(digest: str, entry: Entry) -> str:
    """The digest of the chain behind one more record."""
    with damage_named(_broken(entry, "it holds what no record holds")):
        row = canonical([digest, entry.seq, entry.key, entry.state, entry.data])
    return hashlib.sha256(row).hexdigest()


def _broken(entry: Entry, what: str) -> PolicyError:
    """The refusal of a record."""
    return PolicyError(
        f"review: record {entry.seq}, on batch {entry.key[:16]}: {what}",
        hint="put the newest copy of the whole state folder back; nothing leaves until then",
        code="E-REVIEW-CHAIN",
    )
