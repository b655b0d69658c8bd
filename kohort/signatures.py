"""Checks Ed25519 signatures in OpenSSH's own format (SSHSIG), as `ssh-keygen -Y verify` does.

Format: OpenSSH PROTOCOL.sshsig, version 1, SHA-512.
Guarantees: a signature under one namespace is refused under every other.
Not covered: which keys deserve trust; private keys and signing (common/wire/signing.py).
"""

from __future__ import annotations

import base64
import hashlib
import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kohort.errors import ConfigurationError, RefusedError, damage_named

# The namespaces: one a purpose, so that a signature for one purpose serves no other.
PLAN = "kohort-plan-v1"
MESSAGE = "kohort-message-v1"
RELEASE = "kohort-release-v1"
REQUEST = "kohort-request-v1"
BUNDLE = "kohort-bundle-v1"
AUTHORITY = "kohort-authority-v1"
HANDOVER = "kohort-handover-v1"
CATALOGUE = "kohort-catalogue-v1"

MAGIC = b"SSHSIG"
BEGIN = "-----BEGIN SSH SIGNATURE-----"
END = "-----END SSH SIGNATURE-----"
KEY_CAP_BYTES = 16_384
SIGNATURE_BYTES = 64


def public_text(key: Ed25519PublicKey, comment: str = "") -> str:
    """Return the one-line OpenSSH form of a public key."""
    line = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    return f"{line} {comment}".strip()


def parse_public(text: str) -> Ed25519PublicKey:
    """Return the key in a line `ssh-ed25519 AAAA... [comment]`."""
    damage = ConfigurationError("not an OpenSSH public key line: expected `ssh-ed25519 AAAA...`")
    with damage_named(damage):
        key = serialization.load_ssh_public_key(" ".join(text.split()[:2]).encode())
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"expected an Ed25519 public key, got {type(key).__name__}")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return OpenSSH's `SHA256:...` fingerprint."""
    digest = hashlib.sha256(_key_bytes(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def bytes_to_sign(namespace: str, data: bytes) -> bytes:
    """Return what the key signs: PROTOCOL.sshsig, section "Signed Data"."""
    digest = hashlib.sha512(data).digest()
    return MAGIC + _string(namespace.encode()) + _string(b"") + _string(b"sha512") + _string(digest)


def signature_file(key: Ed25519PublicKey, namespace: str, signature: bytes) -> bytes:
    """Return the signature file of 64 signature bytes by `key`."""
    return _armour(_head(key, namespace) + signature)


def verify(
    public: Ed25519PublicKey,
    namespace: str,
    data: bytes,
    signature: bytes,
    *,
    what: str = "signature",
) -> None:
    """Check a signature file over `data`; `what` names it in messages.

    Raises RefusedError unless `public` signed exactly `data` under `namespace`.
    """
    blob = _unarmour(signature, what)
    head = _head(public, namespace)
    if _armour(blob) != signature:
        raise RefusedError(f"{what}: the signature file was altered")
    if len(blob) != len(head) + SIGNATURE_BYTES or not blob.startswith(head):
        raise RefusedError(f"{what}: made by another key or for another purpose than {namespace}")
    try:
        public.verify(blob[-SIGNATURE_BYTES:], bytes_to_sign(namespace, data))
    except InvalidSignature as error:
        raise RefusedError(f"{what}: the signed bytes were changed") from error


def _key_bytes(key: Ed25519PublicKey) -> bytes:
    """The key as OpenSSH encodes it."""
    return base64.b64decode(public_text(key).split()[1])


def _string(data: bytes) -> bytes:
    """An SSH wire string: length, then bytes."""
    return struct.pack(">I", len(data)) + data


def _head(key: Ed25519PublicKey, namespace: str) -> bytes:
    """Everything in a signature blob before its last 64 bytes."""
    head = MAGIC + struct.pack(">I", 1) + _string(_key_bytes(key)) + _string(namespace.encode())
    head += _string(b"") + _string(b"sha512")
    tail = _string(b"ssh-ed25519") + struct.pack(">I", SIGNATURE_BYTES)
    return head + struct.pack(">I", len(tail) + SIGNATURE_BYTES) + tail


def _armour(blob: bytes) -> bytes:
    """The one spelling of a signature file that is written and accepted."""
    text = base64.b64encode(blob).decode()
    lines = [text[i : i + 70] for i in range(0, len(text), 70)]
    return "\n".join([BEGIN, *lines, END, ""]).encode()


def _unarmour(signature: bytes, what: str) -> bytes:
    """The blob in a signature file."""
    lines = signature.decode("ascii", "replace").strip().splitlines()
    if len(signature) > KEY_CAP_BYTES or len(lines) < 3 or lines[0] != BEGIN or lines[-1] != END:
        raise RefusedError(f"{what}: not an SSH signature")
    try:
        return base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError as error:  # not base64, or not ASCII
        raise RefusedError(f"{what}: not an SSH signature") from error
