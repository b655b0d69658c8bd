"""What the operator's catalogue said last, kept in the state folder.

In: the state folder. Out: the exact bytes of the last signed catalogue, and what they say.
Guarantees: file and signature are written as one; a catalogue that none of the operator's keys
signed is refused.
Not covered: what a site shows of it (server/catalogue).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import RefusedError, damage_named
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from kohort.catalogue import CAP_BYTES, Catalogue, open_catalogue
from server.operator.state import ServerState

FILE = "catalogue.json"
OTHER_KEY = "E-CATALOGUE-KEY"


@dataclass(frozen=True)
class Signed:
    """A catalogue, the bytes that were signed, and the signature file."""

    catalogue: Catalogue
    text: bytes
    signature: bytes


def read_published(state: ServerState) -> Signed | None:
    """Return the last catalogue of this state folder; None where there is none."""
    path = state.root / FILE
    if not path.is_file():
        return None
    damage = RefusedError(
        f"{path}: not the catalogue that was written",
        hint="put back the newest copy of this file, or remove it: `kohort-server publish` then "
        "goes on from the site's own copy",
    )
    with damage_named(damage):
        fields = json.loads(read_capped(path, 3 * CAP_BYTES))
        text, signature = fields["catalogue"].encode(), fields["signature"].encode()
    return Signed(open_catalogue(text, signature), text, signature)


def write_published(state: ServerState, signed: Signed) -> None:
    """Keep a catalogue as the last one."""
    fields = {"catalogue": signed.text.decode(), "signature": signed.signature.decode()}
    atomic_write(state.root / FILE, json.dumps(fields, sort_keys=True).encode(), mode=0o600)


def check_own(signed: Signed, keys: Iterable[Ed25519PublicKey], where: str) -> None:
    """Raise RefusedError (E-CATALOGUE-KEY) for a catalogue that is another operator's."""
    own = {signing.fingerprint(key) for key in keys}
    found = signed.catalogue.fingerprint
    if found not in own:
        raise RefusedError(
            f"{where}: holds a catalogue of {signed.catalogue.name}, signed by {found}, which "
            "never was this operator's key",
            hint="give --out another folder, or --state the folder of the operator whose it is",
            code=OTHER_KEY,
        )
