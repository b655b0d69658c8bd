"""Publishes a proposed release once enough of its signers have signed it off.

In: the proposal's folder with the signatures, the signers of server.yaml. Out: the release.
Guarantees, in order:
  1. the proposal verifies, and this operator signed it;
  2. it names the signers of server.yaml: who was struck off since has no say;
  3. at least `release.sign_offs` of them have signed these very bytes;
  4. one rename makes it visible; of a release that is published, later sign-offs are added alone.
Not covered: what a signer looked at before signing.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped
from kohort import layout
from kohort.manifest import Manifest
from kohort.sign_off import MISSING, read_sign_offs, require_sign_offs, signature_names
from kohort.verification import verify
from server.operator.config import ReleaseSigning
from server.release.seal import publish


def publish_proposal(proposal: Path, out: Path, signers: ReleaseSigning, operator: str) -> Path:
    """Return the folder of the release, published below `out`.

    `operator`: the fingerprint of this operator's key. Raises RefusedError: E-SIGN-OFF where
    sign-offs are missing or the signers changed, E-SIGNER for a signature that does not hold.
    """
    # (1) verify the proposal
    manifest = verify(proposal, trust=frozenset({operator}), require=0)

    # (2) compare its signers with today's
    if (manifest.sign_offs, manifest.signers) != (signers.sign_offs, signers.named):
        raise RefusedError(
            f"{proposal}: proposed for {_words(manifest)}; server.yaml says other signers now",
            hint=f"remove {proposal} and propose it again",
            code=MISSING,
        )

    # (3) count the sign-offs
    sums = read_capped(proposal / layout.SUMS, layout.TEXT_CAP_BYTES)
    require_sign_offs(manifest, read_sign_offs(proposal, manifest, sums), signers.sign_offs)

    # (4) make it visible
    target = out / f"{manifest.name}-{manifest.version}"
    with disk_faults_named("cannot publish the release as", target):
        publish(proposal, target)
        if proposal.exists():
            _add_sign_offs(proposal, target)
    return target


def _words(manifest: Manifest) -> str:
    """How many of whom."""
    names = ", ".join(signer.name for signer in manifest.signers) or "nobody"
    return f"{manifest.sign_offs} of {names}"


def _add_sign_offs(proposal: Path, target: Path) -> None:
    """Put verified signatures beside a release of the same bytes."""
    for name in signature_names(proposal):
        file = layout.sign_off_file(name)
        atomic_write(target / file, read_capped(proposal / file, layout.SIGNED_CAP_BYTES))
