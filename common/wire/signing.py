"""Ed25519 keys and detached signatures in OpenSSH's own format (SSHSIG), so that `ssh-keygen -Y verify` can check them.

In: bytes, a key, a namespace. Out: an armoured signature, or RefusedError. Guaranteed: a signature under one namespace is
refused under every other; keys on disk are readable by their owner alone. Not covered: which keys deserve trust.
Format: OpenSSH PROTOCOL.sshsig (version 1, SHA-512).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigurationError, RefusedError, disk_faults_named
from common.storage.files import read_capped

PLAN, MESSAGE, RELEASE = "kohort-plan-v1", "kohort-message-v1", "kohort-release-v1"
REQUEST = "kohort-request-v1"
MAGIC = b"SSHSIG"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
KEY_CAP_BYTES = 16_384


def new_key() -> Ed25519PrivateKey:
    """Return a fresh private key from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def save_private(path: Path, key: Ed25519PrivateKey) -> None:
    """Write the key as an unencrypted OpenSSH file, mode 0600; refuses to replace an existing key."""
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    with disk_faults_named("cannot write the key", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def load_private(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key in an OpenSSH private key file."""
    try:
        key = serialization.load_ssh_private_key(read_capped(path, KEY_CAP_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path}: not an unencrypted OpenSSH private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return key


def public_text(key: Ed25519PublicKey, comment: str = "") -> str:
    """Return the one-line OpenSSH form of a public key."""
    line = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    return f"{line} {comment}".strip()


def parse_public(text: str) -> Ed25519PublicKey:
    """Return the key in a line `ssh-ed25519 AAAA... [comment]`."""
    try:
        key = serialization.load_ssh_public_key(" ".join(text.split()[:2]).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            "not an OpenSSH public key line: expected `ssh-ed25519 AAAA...`"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"expected an Ed25519 public key, got {type(key).__name__}")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return OpenSSH's `SHA256:...` fingerprint."""
    digest = hashlib.sha256(base64.b64decode(public_text(key).split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _string(data: bytes) -> bytes:
    """An SSH wire string."""
    return struct.pack(">I", len(data)) + data


def _signed_bytes(namespace: str, data: bytes) -> bytes:
    """What the key signs: PROTOCOL.sshsig, section "Signed Data"."""
    digest = hashlib.sha512(data).digest()
    return MAGIC + _string(namespace.encode()) + _string(b"") + _string(b"sha512") + _string(digest)


def sign(key: Ed25519PrivateKey, namespace: str, data: bytes) -> bytes:
    """Return the armoured SSHSIG of `data` under `namespace`."""
    public = base64.b64decode(public_text(key.public_key()).split()[1])
    raw = _string(b"ssh-ed25519") + _string(key.sign(_signed_bytes(namespace, data)))
    blob = MAGIC + struct.pack(">I", 1) + _string(public) + _string(namespace.encode())
    blob += _string(b"") + _string(b"sha512") + _string(raw)
    return _armour(blob)


def _armour(blob: bytes) -> bytes:
    """The one spelling of a signature file that we write and accept."""
    text = base64.b64encode(blob).decode()
    lines = [text[i : i + 70] for i in range(0, len(text), 70)]
    return "\n".join([BEGIN, *lines, END, ""]).encode()


def verify(
    public: Ed25519PublicKey,
    namespace: str,
    data: bytes,
    signature: bytes,
    *,
    what: str = "signature",
) -> None:
    """Check an armoured SSHSIG; raises RefusedError unless `public` signed exactly `data` under `namespace`."""
    lines = signature.decode("ascii", "replace").strip().splitlines()
    if len(signature) > KEY_CAP_BYTES or len(lines) < 3 or lines[0] != BEGIN or lines[-1] != END:
        raise RefusedError(f"{what}: not an SSH signature")
    try:
        blob = base64.b64decode("".join(lines[1:-1]), validate=True)
    except binascii.Error as error:
        raise RefusedError(f"{what}: not an SSH signature") from error
    wire = base64.b64decode(public_text(public).split()[1])
    head = (
        MAGIC
        + struct.pack(">I", 1)
        + _string(wire)
        + _string(namespace.encode())
        + _string(b"")
        + _string(b"sha512")
    )
    tail = _string(b"ssh-ed25519") + struct.pack(">I", 64)
    head += struct.pack(">I", len(tail) + 64) + tail
    if _armour(blob) != signature:
        raise RefusedError(f"{what}: the signature file was altered")
    if len(blob) != len(head) + 64 or not blob.startswith(head):
        raise RefusedError(f"{what}: made by another key or for another purpose than {namespace}")
    try:
        public.verify(blob[-64:], _signed_bytes(namespace, data))
    except InvalidSignature as error:
        raise RefusedError(f"{what}: the signed bytes were changed") from error
