"""What crosses the line between a site and the server: one signed header and one payload of canonical safetensors bytes.

In: a `Header`, payload bytes, the sender's Ed25519 key. Out: `Sealed`, or a verified `Header`. Guaranteed: the header names
study, phase, round, sender and the payload's SHA-256, and is signed as a whole; an unknown field, kind or version is
refused. Not covered: whether the payload may leave or may be used: common/privacy/boundary.py decides that on both sides.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import RefusedError
from common.wire import signing

HEADER_CAP_BYTES = 65_536
Hex64 = Field(pattern=r"^[0-9a-f]{64}$")
Name = Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")


class Header(FrozenModel):
    """The signed description of one message. `statement` holds public constants and ledger heads alone."""

    version: Literal[1] = 1
    kind: Literal["train", "synthesize", "update", "images"]
    study: str = Hex64
    phase: Literal["train", "synthesize"]
    model: Literal["gan", "glow", "wgan", ""] = ""
    round: int = Field(ge=0, le=1_000_000)
    part: int = Field(default=0, ge=0, le=10_000)
    parts: int = Field(default=1, ge=1, le=10_000)
    sender: str = Name
    digest: str = Hex64
    statement: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=64)
    receipts: tuple[str, ...] = Field(default=(), max_length=64)

    @property
    def key(self) -> str:
        """The journal's key: study, phase, model, round, part; never Flower's run id, which changes on resubmission."""
        return f"{self.study}/{self.phase}/{self.model}/{self.round}/{self.part}"


class Sealed(NamedTuple):
    """A message as it stands on disk and on the wire."""

    header: bytes
    payload: bytes
    signature: bytes


def digest_of(payload: bytes) -> str:
    """Return the SHA-256 of a payload in hex."""
    return hashlib.sha256(payload).hexdigest()


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def seal(header: Header, payload: bytes, key: Ed25519PrivateKey) -> Sealed:
    """Return the signed message; the header's digest must be the payload's."""
    if header.digest != digest_of(payload):
        raise RefusedError("the header's digest is not the payload's")
    text = canonical(header.model_dump(mode="json"))
    return Sealed(text, payload, signing.sign(key, signing.MESSAGE, text))


def unseal(sealed: Sealed, public: Ed25519PublicKey, *, max_bytes: int) -> Header:
    """Return the header of a message that `public` signed; raises RefusedError.

    Checks, in this order: sizes, signature, header fields, payload digest.
    """
    if len(sealed.header) > HEADER_CAP_BYTES or len(sealed.payload) > max_bytes:
        raise RefusedError(
            f"message of {len(sealed.payload)} bytes, at most {max_bytes} expected", code="E-SIZE"
        )
    signing.verify(public, signing.MESSAGE, sealed.header, sealed.signature, what="message")
    try:
        header = Header.model_validate_json(sealed.header)
    except ValidationError as error:
        raise RefusedError(
            f"message header has {error.error_count()} unknown or damaged fields"
        ) from error
    if header.digest != digest_of(sealed.payload):
        raise RefusedError("message payload does not have the signed SHA-256", code="E-DIGEST")
    return header
