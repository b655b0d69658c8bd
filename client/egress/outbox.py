"""The outbox: signed messages, on disk before they are sent, and sent again byte for byte.

In: `Cleared` from the gate, the site's signing key. Out: `Sealed`.
Guarantees: a message is whole on disk before `store` returns; one key always gives the same
bytes; a second payload for a key is refused; nothing is removed.
Not covered: when a message is sent, and whether it arrived (the operator's receipts say so).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.egress.gate import Cleared
from client.state.folder import message_file
from client.state.head import rollback
from common.errors import Bug, PolicyError, damage_named
from common.storage.files import atomic_write
from common.storage.reserve import write_with_reserve
from common.wire.messages import Header, Sealed, digest_of_sealed, seal
from common.wire.tensors import dumps, read

ENTRY_CAP_BYTES = (1 << 30) + (1 << 20)


class Outbox:
    """A folder with one file a message, named by the digest of its key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, cleared: Cleared, key: Ed25519PrivateKey) -> Sealed:
        """Sign and write a cleared message, and return it; a stored one is returned unchanged.

        Raises Bug for anything but a `Cleared`, PolicyError (E-OUTBOX-SECOND) for a second payload
        under one key.
        """
        if type(cleared) is not Cleared:
            raise Bug(f"the outbox takes Cleared alone, got {type(cleared).__name__}")
        # a message that is there is returned as it is
        stored = self.get(cleared.header.key)
        if stored is not None:
            if stored.payload != cleared.payload:
                raise PolicyError(
                    "outbox: this round was answered with another payload", code="E-OUTBOX-SECOND"
                )
            return stored
        # a new one is signed and written
        sealed = seal(cleared.header, cleared.payload, key)
        fields = {name: np.frombuffer(value, np.uint8) for name, value in sealed._asdict().items()}
        path = self._path(cleared.header.key)
        data = dumps(fields)
        write_with_reserve(self.folder.parent, lambda: atomic_write(path, data, mode=0o600))
        return sealed

    def get(self, key: str) -> Sealed | None:
        """Return the stored message of a key, or None."""
        path = self._path(key)
        if not path.exists():
            return None
        with damage_named(_not_signed()):
            fields = read(path, max_bytes=ENTRY_CAP_BYTES)
            return Sealed(*(fields[name].tobytes() for name in Sealed._fields))

    def digests(self, key: str) -> list[str]:
        """Return the digest of every stored part of a message, of which `key` names the first."""
        place = key.rpartition("/")[0]
        digests: list[str] = []
        parts = 1
        while len(digests) < parts:
            sealed = self.get(f"{place}/{len(digests)}")
            if sealed is None:
                raise rollback("the outbox lacks a part of a message that this site signed")
            with damage_named(_not_signed()):
                parts = Header.model_validate_json(sealed.header).parts
            digests.append(digest_of_sealed(sealed))
        return digests

    def acknowledge(self, key: str) -> None:
        """Mark that a signed receipt for this message came."""
        atomic_write(self._path(key).with_suffix(".receipt"), b"", mode=0o600)

    def is_acknowledged(self, key: str) -> bool:
        """Return whether a receipt came."""
        return self._path(key).with_suffix(".receipt").exists()

    def _path(self, key: str) -> Path:
        """The file of a message."""
        return message_file(self.folder, key)


def _not_signed() -> PolicyError:
    """The refusal of a file that is no message of this site's."""
    return rollback("a message of the outbox is not the one that was signed")
