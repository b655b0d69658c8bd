"""Which authorities a consortium trusts, signed by its operator.

In: PEM text, a number, the operator's key. Out: the statement, or the parsed one.
Guarantees: only the operator's signature counts; a site takes no lower number than it has, so an
authority that was dropped does not come back.
Not covered: how the statement reaches a site (common/wire/renewal.py).
"""

from __future__ import annotations

import json
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, StrictInt, ValidationError

from common.config import FrozenModel
from common.errors import RefusedError, damage_named
from common.wire import signing
from common.wire.messages import canonical

CAP_BYTES = 32_768
MOST = 2  # the one that goes and the one that comes


class Authorities(FrozenModel):
    """The statement: certificates of authorities as PEM text, and a number that grows."""

    format: Literal["kohort-authority/1"]
    number: StrictInt = Field(ge=1, le=1_000_000)
    ca: str = Field(max_length=16_384)
    signature: str = Field(max_length=4096)


def sign_authorities(number: int, ca: str, key: Ed25519PrivateKey) -> bytes:
    """Return the signed statement that `ca` (PEM, one or two) is what sites trust from now on."""
    fields = {"format": "kohort-authority/1", "number": number, "ca": ca}
    signature = signing.sign(key, signing.AUTHORITY, canonical(fields)).decode()
    return canonical({**fields, "signature": signature})


def open_authorities(text: bytes, *operators: Ed25519PublicKey) -> Authorities:
    """Return a statement that one of these keys signed; raises RefusedError (E-AUTHORITY)."""
    if len(text) > CAP_BYTES:
        raise _refusal("larger than any")
    try:
        found = Authorities.model_validate_json(text)
    except ValidationError as error:
        raise _refusal("not its fields") from error
    fields = json.loads(text)
    del fields["signature"]
    signature = found.signature.encode()
    if not any(_has_signed(key, canonical(fields), signature) for key in operators):
        raise _refusal("not signed by this site's operator")
    with damage_named(_refusal("no certificates in it")):
        certificates = x509.load_pem_x509_certificates(found.ca.encode())
    if not 1 <= len(certificates) <= MOST:
        raise _refusal(f"{len(certificates)} certificates in it, expected one or two")
    return found


def _has_signed(key: Ed25519PublicKey, data: bytes, signature: bytes) -> bool:
    """Whether a key signed a statement."""
    try:
        signing.verify(key, signing.AUTHORITY, data, signature)
    except RefusedError:
        return False
    return True


def _refusal(what: str) -> RefusedError:
    return RefusedError(
        f"the operator's statement of its authority: {what}",
        hint="ask the operator by telephone; nothing was changed here",
        code="E-AUTHORITY",
    )
