"""Which releases lie in a folder, published or proposed, and who has signed them off.

In: the folder, the operator's keys. Out: a `ReleaseRow` each.
Guarantees: what a row says of a release is signed by its operator, and each sign-off in it holds; a
key that never was this operator's is named.
Not covered: the pictures and other files. `kohort verify` checks those, which takes longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import KohortError, RefusedError
from common.storage.files import file_digest, read_capped
from kohort import layout, signatures
from kohort.manifest import Manifest, read_manifest
from kohort.sign_off import SignOff, read_sign_offs

PROPOSED = "proposed"
MOST = 100  # the newest; a folder that holds more has a page of its own somewhere


@dataclass(frozen=True)
class ReleaseRow:
    """One release: its folder, who signed it off, who may still, and what is wrong with it.

    `other_key`: the fingerprint of the key that signed it, where it never was this operator's.
    """

    folder: Path
    proposed: bool
    name: str = ""
    version: str = ""
    images: int = 0
    needed: int = 0
    signed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    problem: str = ""
    other_key: str = ""

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} {self.version}".strip() or self.folder.name

    @property
    def missing(self) -> int:
        """How many sign-offs it still needs."""
        return max(0, self.needed - len(self.signed))

    @property
    def state(self) -> str:
        """In a few words, where it stands."""
        if self.problem:
            return "not as signed"
        if not self.proposed:
            return "published" if not self.missing else "published, sign-offs are missing"
        return "proposed" if self.missing else "ready to publish"


def read_releases(folder: Path, keys: Iterable[Ed25519PublicKey]) -> tuple[ReleaseRow, ...]:
    """Return the newest releases below `folder`, proposed ones first.

    `keys`: the operator's key, and those before it.
    """
    own = frozenset(signatures.fingerprint(key) for key in keys)
    places = [(path.parent, True) for path in folder.glob(f"{PROPOSED}/*/{layout.MANIFEST}")]
    places += [(path.parent, False) for path in folder.glob(f"*/{layout.MANIFEST}")]
    places.sort(key=lambda place: (place[1], _changed(place[0])), reverse=True)
    return tuple(_read_row(path, proposed, own) for path, proposed in places[:MOST])


def _changed(folder: Path) -> float:
    """When a release was made; one that has just gone is old."""
    try:
        return (folder / layout.MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


def _read_row(folder: Path, proposed: bool, own: frozenset[str]) -> ReleaseRow:
    """One release; what cannot be believed is named, and nothing else of it is shown."""
    try:
        manifest, signed = _read_signed(folder)
        key = signatures.fingerprint(signatures.parse_public(manifest.operator_key))
    except (KohortError, OSError) as error:
        code = error.code if isinstance(error, KohortError) else "E-ENVIRONMENT"
        return ReleaseRow(folder, proposed, problem=code)
    there = tuple(one.name for one in signed)
    waiting = tuple(one.name for one in manifest.signers if one.name not in there)
    return ReleaseRow(
        folder=folder,
        proposed=proposed,
        name=manifest.name,
        version=manifest.version,
        images=manifest.images,
        needed=manifest.sign_offs,
        signed=there,
        waiting=waiting,
        other_key="" if key in own else key,
    )


def _read_signed(folder: Path) -> tuple[Manifest, tuple[SignOff, ...]]:
    """The manifest that its operator signed, and the sign-offs that hold."""
    manifest = read_manifest(folder)
    key = signatures.parse_public(manifest.operator_key)
    sums = read_capped(folder / layout.SUMS, layout.TEXT_CAP_BYTES)
    signature = read_capped(folder / layout.SIGNATURE, layout.SIGNED_CAP_BYTES)
    signatures.verify(key, signatures.RELEASE, sums, signature, what=layout.SUMS)
    if layout.parse_sums(sums).get(layout.MANIFEST) != file_digest(folder / layout.MANIFEST):
        raise RefusedError(f"{layout.MANIFEST}: altered")
    return manifest, read_sign_offs(folder, manifest, sums)
