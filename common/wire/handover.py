"""A signing key hands over to the next one: the old key signs it, and the new key agrees.

In: two Ed25519 keys, or foreign bytes. Out: the statement, or the parsed one.
Guarantees: both keys signed exactly these two keys, this role and this name, and nothing else.
Not covered: who may believe it: whoever knows the old key (server/operator/sites.py for a site's,
client/state/operators.py for the operator's).
A key that was stolen cannot hand over in safety: the thief can, too. Such a one is revoked.
"""

from __future__ import annotations

import json
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, RefusedError
from common.wire import signing
from common.wire.messages import canonical

FORMAT = "kohort-handover/1"
CAP_BYTES = 4096
Role = Literal["site", "operator"]


class Handover(FrozenModel):
    """The statement: whose key, the old and the new line, a signature by each."""

    format: Literal["kohort-handover/1"]
    role: Role
    name: str = Field(min_length=1, max_length=64)
    old: str = Field(max_length=200)
    new: str = Field(max_length=200)
    by_old: str = Field(max_length=1000)
    by_new: str = Field(max_length=1000)


def write_handover(role: Role, name: str, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> bytes:
    """Return the statement that `new` takes over from `old`."""
    fields = {"format": FORMAT, "role": role, "name": name}
    fields["old"] = signing.public_text(old.public_key())
    fields["new"] = signing.public_text(new.public_key())
    data = canonical(fields)
    for field, key in (("by_old", old), ("by_new", new)):
        fields[field] = signing.sign(key, signing.HANDOVER, data).decode()
    return canonical(fields)


def open_handover(text: bytes, role: Role) -> Handover:
    """Return a statement of this role whose signatures hold; raises RefusedError (E-HANDOVER)."""
    if len(text) > CAP_BYTES:
        raise refusal("larger than any")
    try:
        found = Handover.model_validate_json(text)
    except ValidationError as error:
        raise refusal("not its fields") from error
    if found.role != role or found.old == found.new:
        raise refusal(f"not from one {role}'s key to another")
    fields = json.loads(text)
    signatures = [fields.pop(name) for name in ("by_old", "by_new")]
    for line, signature in zip((found.old, found.new), signatures, strict=True):
        try:
            key = signing.parse_public(line)
            signing.verify(key, signing.HANDOVER, canonical(fields), signature.encode())
        except (RefusedError, ConfigurationError) as error:
            raise refusal("a signature in it does not hold") from error
        if signing.public_text(key) != line:
            raise refusal("a key in it is spelled in another way")
    return found


def refusal(what: str) -> RefusedError:
    """Return the refusal of a statement."""
    return RefusedError(
        f"hand-over of a signing key: {what}",
        hint="ask whose key it is for the file again; nothing was changed here",
        code="E-HANDOVER",
    )
