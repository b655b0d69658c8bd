"""Ed25519 private keys and signing, in OpenSSH's own format (SSHSIG).

Guarantees: a private key on disk is readable by its owner alone; an existing key is never replaced.
Not covered: which keys deserve trust. Verification is kohort/signatures.py, offered here as well.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigurationError, damage_named, disk_faults_named
from common.storage.files import read_capped, write_new
from common.wire import keys
from kohort.signatures import (
    AUTHORITY,
    HANDOVER,
    KEY_CAP_BYTES,
    MESSAGE,
    PLAN,
    RELEASE,
    REQUEST,
    bytes_to_sign,
    fingerprint,
    parse_public,
    public_text,
    signature_file,
    verify,
)

# a person's decision on images; it stays at the site, so the researcher's package need not know it
REVIEW = "kohort-review-v1"
# the head of a side's log (common/audit_log)
LOG = "kohort-log-v1"

__all__ = [
    "AUTHORITY",
    "HANDOVER",
    "KEY_CAP_BYTES",
    "LOG",
    "MESSAGE",
    "PLAN",
    "RELEASE",
    "REQUEST",
    "REVIEW",
    "fingerprint",
    "load_private",
    "new_key",
    "parse_public",
    "private_text",
    "public_text",
    "save_private",
    "sign",
    "verify",
]


def new_key() -> Ed25519PrivateKey:
    """Return a fresh private key from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def private_text(key: Ed25519PrivateKey) -> bytes:
    """Return a key as an unencrypted OpenSSH file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def save_private(path: Path, key: Ed25519PrivateKey) -> None:
    """Write the key as an unencrypted OpenSSH file, mode 0600; an existing file is an error."""
    text = private_text(key)
    with disk_faults_named("cannot write the key", path):
        write_new(path, text)


def load_private(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key in an OpenSSH private key file, or in a protected PEM file."""
    text = read_capped(path, KEY_CAP_BYTES)
    key: object
    if text.lstrip().startswith(keys.PROTECTED):
        key = keys.from_pem(text, path)
    else:
        key = _load_open(text, path)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return key


def _load_open(text: bytes, path: Path) -> object:
    """The key in an OpenSSH file without a passphrase."""
    with damage_named(ConfigurationError(f"{path}: not an unencrypted OpenSSH private key")):
        return serialization.load_ssh_private_key(text, password=None)


def sign(key: Ed25519PrivateKey, namespace: str, data: bytes) -> bytes:
    """Return the signature file (SSHSIG) of `data` under `namespace`."""
    signature = key.sign(bytes_to_sign(namespace, data))
    return signature_file(key.public_key(), namespace, signature)
