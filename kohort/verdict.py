"""What a reader may say of a release that verifies: who signed it, and whether the reader knows.

A release that verifies is consistent. It is only as good as its key: anybody can sign a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kohort import signatures
from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.layout import SUMS, TEXT_CAP_BYTES
from kohort.manifest import Manifest
from kohort.sign_off import SignOff, read_sign_offs

UNCHECKED = "consistent, but signed by a key that you have not checked"


@dataclass(frozen=True)
class Verdict:
    """A release that passed all steps of kohort/verification.py.

    `fingerprint` is the operator's, `trust` the fingerprints that the reader gave to `verify`.
    """

    manifest: Manifest
    fingerprint: str
    sign_offs: tuple[SignOff, ...]
    trust: frozenset[str]

    @property
    def trusted(self) -> bool:
        """Whether the reader named keys: verification then rests on them and on no others."""
        return bool(self.trust)


def judge(folder: Path, manifest: Manifest, trust: frozenset[str]) -> Verdict:
    """Return the verdict on a release that verified with `trust`."""
    key = signatures.fingerprint(signatures.parse_public(manifest.operator_key))
    signed = read_sign_offs(folder, manifest, read_capped(folder / SUMS, TEXT_CAP_BYTES))
    return Verdict(manifest, key, signed, trust)


def unchecked_words(release: str, verdict: Verdict) -> tuple[str, str]:
    """Return what to say where nobody checked the key, and how to check it."""
    return (
        f"{release}: {UNCHECKED}: {verdict.fingerprint}",
        "take the fingerprint from the consortium's own page or by telephone, not from the "
        f"release; then: kohort verify {release} --trust SHA256:...",
    )


def require_trust(release: str, verdict: Verdict) -> None:
    """Raise RefusedError where the reader named no key."""
    if not verdict.trusted:
        message, hint = unchecked_words(release, verdict)
        raise RefusedError(message, hint=hint)


def signed_lines(verdict: Verdict) -> list[str]:
    """Return who signed, when, and how many sign-offs there are of how many needed."""
    manifest = verdict.manifest
    lines = [f"signed by {verdict.fingerprint}, dated {manifest.date}"]
    lines[0] += _known(verdict, verdict.fingerprint)
    for one in verdict.sign_offs:
        known = _known(verdict, one.fingerprint)
        lines.append(f"signed off by {one.name} {one.fingerprint}{known}")
    if manifest.signers:
        lines.append(
            f"sign-offs: {len(verdict.sign_offs)} are there; the release needs "
            f"{manifest.sign_offs} of {len(manifest.signers)}"
        )
    else:
        lines.append("sign-offs: none; its operator alone vouches for it")
    return lines


def _known(verdict: Verdict, fingerprint: str) -> str:
    """Whether the reader named this key."""
    if fingerprint in verdict.trust:
        return " (a key that you trust)"
    return " (not checked by you)"
