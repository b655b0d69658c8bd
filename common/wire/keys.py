"""Private keys as PEM text (PKCS #8), open or protected by a passphrase.

Guarantees: a wrong or missing passphrase has a code of its own (E-PASSPHRASE).
Not covered: where the passphrase comes from (common/passphrase.py).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import passphrase
from common.errors import ConfigurationError, damage_named

PROTECTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
Key = EllipticCurvePrivateKey | Ed25519PrivateKey


def to_pem(key: Key, secret: bytes | None) -> bytes:
    """Return a key as PEM text, protected if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if secret is not None:
        encryption = serialization.BestAvailableEncryption(secret)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def from_pem(text: bytes, path: Path) -> object:
    """Return the key in PEM text; the passphrase is asked for only where one is needed."""
    secret = None
    if text.lstrip().startswith(PROTECTED):
        secret = passphrase.needed(path)
    damage: ConfigurationError = ConfigurationError(f"{path}: not a PEM private key")
    if secret is not None:
        damage = passphrase.wrong(path)
    with damage_named(damage):
        return serialization.load_pem_private_key(text, password=secret)
