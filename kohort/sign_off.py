"""Who vouches for a release besides its operator: the signers that its manifest names.

In: a release folder, its manifest, the bytes of SHA256SUMS. Out: the sign-offs that hold.
Guarantees:
  - a sign-off is a signature over SHA256SUMS by the key that the manifest names for that signer;
  - one person counts once: names and keys are distinct, and none is the operator's;
  - one sign-off that fails refuses the release, however many others hold.
Not covered: which signers deserve trust. The reader names their keys (`kohort verify --trust`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kohort import layout, signatures
from kohort.errors import ConfigurationError, RefusedError
from kohort.files import read_capped
from kohort.manifest import Manifest

WRONG = "E-SIGNER"
MISSING = "E-SIGN-OFF"
OPERATOR = "operator"


@dataclass(frozen=True)
class SignOff:
    """A signature that holds: the signer's name, and the fingerprint of its key."""

    name: str
    fingerprint: str


def check_signers(signers: Mapping[str, str], operator_key: str) -> dict[str, Ed25519PublicKey]:
    """Return each signer's key; `signers` are key lines by name.

    Raises ConfigurationError (E-SIGNER) for a line that is no Ed25519 key, for a key that two
    names have, and for the operator's own name or key.
    """
    owners = {signatures.fingerprint(signatures.parse_public(operator_key)): OPERATOR}
    found = {}
    for name, line in signers.items():
        try:
            key = signatures.parse_public(line)
        except ConfigurationError as error:
            raise ConfigurationError(f"signer {name}: {error}", code=WRONG) from error
        owner = owners.setdefault(signatures.fingerprint(key), name)
        if name == OPERATOR or owner != name:
            raise ConfigurationError(
                f"signer {name}: expected a name and a key of its own, got those of {owner}",
                hint="the operator signs every release already; a signer is somebody else",
                code=WRONG,
            )
        found[name] = key
    return found


def signers_of(manifest: Manifest) -> dict[str, Ed25519PublicKey]:
    """Return the key of each signer that the manifest names; raises RefusedError (E-SIGNER)."""
    lines = {signer.name: signer.key for signer in manifest.signers}
    if len(lines) != len(manifest.signers):
        raise RefusedError(f"{layout.MANIFEST}: names a signer twice", code=WRONG)
    if manifest.sign_offs > len(lines):
        raise RefusedError(
            f"{layout.MANIFEST}: needs {manifest.sign_offs} sign-offs, names {len(lines)} signers",
            code=WRONG,
        )
    try:
        return check_signers(lines, manifest.operator_key)
    except ConfigurationError as error:
        raise RefusedError(f"{layout.MANIFEST}: {error}", code=error.code) from error


def read_sign_offs(folder: Path, manifest: Manifest, sums: bytes) -> tuple[SignOff, ...]:
    """Return the sign-offs in a release folder, in order of name.

    `sums` are the bytes of SHA256SUMS. Raises RefusedError (E-SIGNER) for a signature by somebody
    whom the manifest does not name, by another key, for another purpose, or over other bytes.
    """
    keys = signers_of(manifest)
    found = []
    for name in signature_names(folder):
        file = layout.sign_off_file(name)
        if name not in keys:
            known = ", ".join(keys) or "none"
            raise RefusedError(
                f"{file}: {layout.MANIFEST} names no signer {name}; known: {known}",
                hint="remove the file, or pull the release again",
                code=WRONG,
            )
        check_sign_off(name, keys[name], sums, read_capped(folder / file, layout.SIGNED_CAP_BYTES))
        found.append(SignOff(name, signatures.fingerprint(keys[name])))
    return tuple(found)


def signature_names(folder: Path) -> list[str]:
    """Return the names of whom a signature file lies in a release folder, sorted."""
    found = []
    for path in folder.glob(layout.sign_off_file("*")):
        match = layout.SIGN_OFF.fullmatch(path.name)
        if match:
            found.append(match[1])
    return sorted(found)


def check_sign_off(name: str, key: Ed25519PublicKey, sums: bytes, signature: bytes) -> None:
    """Raise RefusedError (E-SIGNER) unless `key` signed `sums` for a release."""
    file = layout.sign_off_file(name)
    try:
        signatures.verify(key, signatures.RELEASE, sums, signature, what=file)
    except RefusedError as error:
        raise RefusedError(str(error), hint=error.hint, code=WRONG) from error


def require_sign_offs(
    manifest: Manifest,
    found: Iterable[SignOff],
    require: int,
    trusted: frozenset[str] | None = None,
) -> None:
    """Raise RefusedError (E-SIGN-OFF) where fewer than `require` of the sign-offs count.

    `trusted`: fingerprints of the keys that count; None: of every signer that the manifest names.
    """
    there = list(found)
    counted = [one for one in there if trusted is None or one.fingerprint in trusted]
    if len(counted) >= require:
        return
    whose = "sign-offs" if trusted is None else "sign-offs by keys that you trust"
    problem = f"{len(counted)} of {require} {whose} are there"
    if counted:
        problem += f": {_names(counted)}"
    raise RefusedError(problem, hint=_missing(manifest, there, counted), code=MISSING)


def _missing(manifest: Manifest, there: list[SignOff], counted: list[SignOff]) -> str:
    """Whose sign-off would help: those who have not signed, and those whom nobody trusts yet."""
    signed = {one.name for one in there}
    waiting = [signer.name for signer in manifest.signers if signer.name not in signed]
    distrusted = [f"{one.name} {one.fingerprint}" for one in there if one not in counted]
    words = []
    if waiting:
        words.append(f"not signed off by {', '.join(waiting)}")
    if distrusted:
        words.append(f"signed, and not in --trust: {', '.join(distrusted)}")
    return "; ".join(words) or "this release names no signers; only its operator vouches for it"


def _names(found: list[SignOff]) -> str:
    """The signers' names, one after the other."""
    return ", ".join(one.name for one in found)
