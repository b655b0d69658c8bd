"""Messages between a site and the server: one signed header and one payload.

In: a `Header`, payload bytes (canonical safetensors), the sender's Ed25519 key.
Out: `Sealed`, or the `Header` of a verified message.
Guarantees: the header is signed as a whole and names the payload's SHA-256; an unknown field, kind
or version is refused.
Not covered: whether the payload may leave or be used; common/privacy/boundary.py decides that.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from common.errors import RefusedError
from common.wire import signing
from kohort.header import VERSION, Header

__all__ = [
    "HEADER_CAP_BYTES",
    "Header",
    "Sealed",
    "canonical",
    "digest_of",
    "digest_of_sealed",
    "open_header",
    "seal",
    "unseal",
]

HEADER_CAP_BYTES = 65_536


class Sealed(NamedTuple):
    """A message as it is stored and sent."""

    header: bytes
    payload: bytes
    signature: bytes


def digest_of(payload: bytes) -> str:
    """Return the SHA-256 of a payload in hex."""
    return hashlib.sha256(payload).hexdigest()


def digest_of_sealed(sealed: Sealed) -> str:
    """Return the SHA-256, in hex, of a signed message: header, payload and signature."""
    parts = (digest_of(sealed.header), digest_of(sealed.payload), digest_of(sealed.signature))
    return digest_of("\n".join(parts).encode())


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

    Checks, in this order: sizes, signature, header version, header fields, payload digest.
    """
    if len(sealed.payload) > max_bytes:
        raise RefusedError(
            f"message of {len(sealed.payload)} bytes, at most {max_bytes} expected", code="E-SIZE"
        )
    header = open_header(sealed.header, sealed.signature, public)
    if header.digest != digest_of(sealed.payload):
        raise RefusedError("message payload does not have the signed SHA-256", code="E-DIGEST")
    return header


def open_header(text: bytes, signature: bytes, public: Ed25519PublicKey) -> Header:
    """Return a header that `public` signed, without its payload; raises RefusedError.

    Checks, in this order: size, signature, version, fields.
    """
    if len(text) > HEADER_CAP_BYTES:
        raise RefusedError(
            f"message header of {len(text)} bytes, at most {HEADER_CAP_BYTES} expected",
            code="E-SIZE",
        )
    signing.verify(public, signing.MESSAGE, text, signature, what="message")
    _check_version(text)
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        raise RefusedError(
            f"message header has {error.error_count()} unknown or damaged fields"
        ) from error


def _check_version(header: bytes) -> None:
    """Refuse a message that another version of kohort signed, before its fields are read."""
    try:
        found = json.loads(header)
        version = found["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # the fields say what is wrong
    if type(version) is int and version != VERSION:
        raise RefusedError(
            f"message: header version {version}, expected {VERSION}",
            hint="the two sides run different versions of kohort: update the older one",
            code="E-VERSION",
        )
