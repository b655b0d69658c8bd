"""The operator's key over time: the present one, and those that handed over to it.

In: the join file's key, hand-over statements that a person gave to `kohort-site join`. Out: which
key counts for what.
Guarantees: a hand-over counts only from the key that this site knows; the old key counts beside the
new one until an instruction of the new one came, and afterwards for plans that were approved
before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.state.folder import State
from client.state.membership import Membership
from client.state.plans import Plans
from common.errors import ConfigurationError, RefusedError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from common.wire.handover import CAP_BYTES, Handover, open_handover, refusal
from common.wire.messages import canonical

FILE = "operators.json"
MOST = 32  # hand-overs that are kept
MARK = "operator-key"  # the journal's key


@dataclass(frozen=True)
class Operators:
    """What this site knows of its operator's keys."""

    state: State
    membership: Membership

    @property
    def keys(self) -> tuple[Ed25519PublicKey, ...]:
        """Every key whose approved plans count, newest first."""
        found = [self.membership.operator]
        line = signing.public_text(found[0])
        for one in reversed(read_handovers(self.state)):
            if one.new != line:
                break
            line = one.old
            found.append(signing.parse_public(line))
        return tuple(found)

    @property
    def trusted(self) -> tuple[Ed25519PublicKey, ...]:
        """The keys whose instructions and new plans count now: two until the new one was used."""
        return self.keys[:1] if self._is_used() else self.keys[:2]

    def signer(self, text: bytes, signature: bytes) -> Ed25519PublicKey:
        """Return which of them signed an instruction; the newest where none did."""
        newest, *others = self.trusted
        for key in others:
            try:
                signing.verify(key, signing.MESSAGE, text, signature)
            except RefusedError:
                continue
            return key
        return newest

    def note_used(self, key: Ed25519PublicKey) -> None:
        """Note an instruction of this key: once the newest is used, the one before it is not."""
        if len(self.trusted) > 1 and key == self.keys[0]:
            self.state.journal.append(MARK, "used", {"key": signing.public_text(key)})

    def _is_used(self) -> bool:
        """Whether an instruction of the newest key came."""
        mark = self.state.journal.latest(MARK)
        newest = signing.public_text(self.membership.operator)
        return mark is not None and mark.data.get("key") == newest


def read_handovers(state: State) -> list[Handover]:
    """Return the hand-overs that this site took, oldest first; raises for a damaged file."""
    path = state.root / FILE
    if not path.is_file():
        return []
    damage = ConfigurationError(
        f"{path}: not the hand-overs that were taken", hint="put back the copy of this file"
    )
    with damage_named(damage):
        texts = json.loads(read_capped(path, MOST * 2 * CAP_BYTES))["handovers"]
        rows = [str(one).encode() for one in texts]
    return [open_handover(one, "operator") for one in rows]


def take_handover(state: State, membership: Membership, text: bytes) -> Handover:
    """Trust the key that the known key hands over to; return the statement.

    Raises RefusedError (E-HANDOVER) for one of another key. The same statement again changes
    nothing.
    """
    found = open_handover(text, "operator")
    known = signing.public_text(membership.operator)
    if known not in (found.old, found.new):
        raise refusal(f"from {_finger(found.old)}, this site's operator is {_finger(known)}")
    taken = read_handovers(state)
    if found not in taken:
        if known == found.new:
            raise refusal("to the key that this site has, from one that it never had")
        kept = [*taken, found][-MOST:]
        fields = {"handovers": [canonical(one.model_dump(mode="json")).decode() for one in kept]}
        # what proves the new key first
        atomic_write(state.root / FILE, canonical(fields), mode=0o600)
    changed = membership.model_copy(update={"operator_key": found.new})
    fields_kept = changed.model_dump(mode="json", exclude_defaults=True)
    atomic_write(state.membership, json.dumps(fields_kept, indent=1).encode() + b"\n", mode=0o600)
    return found


def is_handover(text: bytes) -> bool:
    """Whether a file says that it is a hand-over, whatever else is wrong with it."""
    try:
        return str(json.loads(text)["format"]).startswith("kohort-handover/")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _finger(line: str) -> str:
    """A key's fingerprint."""
    return signing.fingerprint(signing.parse_public(line))


def plans_of(state: State, membership: Membership) -> Plans:
    """Return the plans that this site approved, under every key that signed one."""
    operators = Operators(state, membership)
    return Plans(state, operators.keys, operators.trusted)
